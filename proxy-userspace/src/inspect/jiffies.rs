//! The kernel's jiffies. Time stamps of the datapath are their low 32 bits, so ages need the same clock. A program of two
//! instructions returns it; this needs CAP_BPF and no pin.

use std::{io, os::fd::AsFd as _};

use crate::bpf::{probe, prog};

/// The current value and the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jiffies {
    /// Low 32 bits.
    pub now: u32,
    pub per_second: u32,
}

/// `BPF_PROG_TYPE_SOCKET_FILTER`: loading it needs only CAP_BPF.
const SOCKET_FILTER: u32 = 1;
/// `call bpf_jiffies64; exit` (uapi/linux/bpf.h, helper 118).
const PROGRAM: [u64; 2] = [0x85 | 118 << 32, 0x95];

impl Jiffies {
    pub fn read() -> io::Result<Self> {
        let program = prog::load(SOCKET_FILTER, 0, &PROGRAM)?;
        Ok(Self { now: prog::test_run(program.as_fd(), &[0; 64])?, per_second: probe::jiffies_per_second()? })
    }

    /// Whole seconds since `stamp`; 0 for a stamp newer than this reading.
    pub fn seconds_since(&self, stamp: u32) -> u64 {
        let elapsed = self.now.wrapping_sub(stamp);
        if elapsed > u32::MAX / 2 { 0 } else { u64::from(elapsed / self.per_second.max(1)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_survive_the_wrap() {
        let clock = Jiffies { now: 500, per_second: 250 };
        assert_eq!(clock.seconds_since(0), 2);
        assert_eq!(clock.seconds_since(u32::MAX - 499), 4);
        assert_eq!(clock.seconds_since(510), 0);
    }
}
