//! Yardsticks for the datapath: an empty program, one hash lookup, one LRU hit, two inserts; each with keys and values
//! of CONNTRACK's size.

use std::{io, os::fd::OwnedFd};

use super::asm::{self, Asm, HASH, LRU_HASH, MAP_LOOKUP, MAP_UPDATE, PRANDOM};

/// Sizes of CONNTRACK's key and value.
const KEY: i16 = size_of::<proxy_common::CtKey>() as i16;
const VALUE: i16 = size_of::<proxy_common::CtEntry>() as i16;

/// BPF_NOEXIST
const NOEXIST: i32 = 1;

/// Classifiers; all of them pass the packet.
#[derive(Debug)]
pub struct Yardsticks {
    pub empty: OwnedFd,
    /// A hit in a warm preallocated hash.
    pub hash: OwnedFd,
    /// A hit in a warm LRU hash.
    pub lru: OwnedFd,
    /// Two inserts of new keys into a preallocated hash.
    pub inserts: OwnedFd,
}

impl Yardsticks {
    pub fn load() -> io::Result<Self> {
        let lookup = |map_type| {
            let map = asm::map(map_type, KEY as u32, VALUE as u32, 65_536)?;
            asm::update(&map, &[0; KEY as usize], &[0; VALUE as usize])?;
            let code = zeros(Asm::default(), -KEY, KEY).map(1, &map).copy(2, 10).add(2, -i32::from(KEY));
            pass(code.call(MAP_LOOKUP)).classifier()
        };
        let map = asm::map(HASH, KEY as u32, VALUE as u32, 262_144)?;
        let mut code = zeros(zeros(Asm::default(), -KEY, KEY), -KEY - VALUE, VALUE);
        // Two random words: no key occurs twice.
        code = code.call(PRANDOM).store_reg(10, -KEY, 0).call(PRANDOM).store_reg(10, -KEY + 8, 0);
        for half in 0..2 {
            code = code
                .store(10, -8, half)
                .map(1, &map)
                .copy(2, 10)
                .add(2, -i32::from(KEY))
                .copy(3, 10)
                .add(3, -i32::from(KEY + VALUE))
                .set(4, NOEXIST)
                .call(MAP_UPDATE);
        }
        Ok(Self {
            empty: pass(Asm::default()).classifier()?,
            hash: lookup(HASH)?,
            lru: lookup(LRU_HASH)?,
            inserts: pass(code).classifier()?,
        })
    }
}

/// The empty XDP program.
pub fn empty_xdp() -> io::Result<OwnedFd> {
    const XDP_PASS: i32 = 2;
    Asm::default().set(0, XDP_PASS).exit().xdp()
}

/// Zeroes stack bytes.
fn zeros(mut code: Asm, from: i16, len: i16) -> Asm {
    for at in (from..from + len).step_by(8) {
        code = code.store(10, at, 0);
    }
    code
}

fn pass(code: Asm) -> Asm {
    code.set(0, -1).exit()
}
