//! Transport checksums: updating one, verifying one, computing the pseudo-header's sum, and detecting a partial checksum. The
//! arithmetic itself is `proxy_common::csum`.

use core::{hint::black_box, mem::size_of, ptr};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, xdp_md},
    helpers::{
        bpf_l4_csum_replace,
        generated::{bpf_csum_diff, bpf_skb_load_bytes},
    },
    programs::{TcContext, XdpContext},
};
use proxy_common::{Addr, Counter, csum, tcp};

use crate::{
    base::{
        maps::{checksum_block, followed},
        protocol_headers::Tcp,
        scratch::{ChecksumBlock, Followed},
        verdict::DropReason,
    },
    packet::access::{load, ptr_at},
};

#[inline(always)]
pub fn update_l4(ctx: &TcContext, offset: usize, diff: u32, flags: u64) -> Result<(), DropReason> {
    // SAFETY: the kernel's context; no pointer into the packet is used after this call. Size 0 in the flags
    // says that `to` is a difference.
    let failed = unsafe {
        bpf_l4_csum_replace(ctx.as_ptr().cast::<__sk_buff>(), offset as u32, 0, u64::from(diff), flags)
    };
    if failed == 0 { Ok(()) } else { Err(Counter::RewriteFailed) }
}

/// The sum over the pseudo-header; `len` in host order.
#[inline(always)]
pub fn pseudo_header(src: &Addr, dst: &Addr, v4: bool, proto: u8, len: u16) -> u32 {
    let tail = csum::add(u32::from(u16::from(proto).to_be()), u32::from(len.to_be()));
    let addrs = if v4 {
        csum::add(src.v4_be(), dst.v4_be())
    } else {
        // The difference to zero is the plain sum plus all-ones words, which do not change a one's-complement sum.
        csum::add(csum::diff4([0; 4], src.words()), csum::diff4([0; 4], dst.words()))
    };
    csum::add(addrs, tail)
}

/// Whether the transport checksum at `offset` is only the pseudo-header's sum (CHECKSUM_PARTIAL).
#[inline(always)]
pub fn is_partial(ctx: &TcContext, offset: usize) -> Option<bool> {
    // SAFETY: `ptr_at` checked the bounds.
    let before = unsafe { *ptr_at::<[u16; 1]>(ctx, offset)? };
    update_l4(ctx, offset, 1, 0).ok()?;
    let field = ptr_at::<[u16; 1]>(ctx, offset)?;
    // SAFETY: as above.
    let partial = unsafe { *field } == before;
    // SAFETY: as above.
    unsafe { *field = before };
    Some(partial)
}

/// Bytes that are summed at a time, and how often at most.
const BLOCK: u32 = size_of::<ChecksumBlock>() as u32;
const BLOCKS: u32 = 32;

/// A mask for the offset of a header, for the verifier: "R3 offset is outside of the packet".
const MOST_HEADERS: u32 = 0x3fff;

/// A TCP packet at tc or XDP, read to verify its checksum.
pub trait TcpPacket {
    /// Copies the header from offset `l4`; false if the packet is too short.
    fn read_tcp(&self, l4: u32, to: &mut Tcp) -> bool;
    /// Whether the checksum of the packet in FOLLOWED holds. Taken for right where it is, or might be, the pseudo-header's sum
    /// only (CHECKSUM_PARTIAL), and for what is longer than a frame: a device or the kernel has joined it from segments that it
    /// checked.
    fn tcp_checksum_holds(&self) -> bool;
}

impl TcpPacket for TcContext {
    #[inline(always)]
    fn read_tcp(&self, l4: u32, to: &mut Tcp) -> bool {
        load(self, l4, to)
    }

    #[inline(always)]
    fn tcp_checksum_holds(&self) -> bool {
        checksum_holds_at_tc(self.as_ptr().cast()) != 0
    }
}

impl TcpPacket for XdpContext {
    #[inline(always)]
    fn read_tcp(&self, l4: u32, to: &mut Tcp) -> bool {
        let Some(header) = ptr_at::<Tcp>(self, (l4 & MOST_HEADERS) as usize) else {
            return false;
        };
        // SAFETY: `ptr_at` checked the bounds.
        *to = unsafe { header.read() };
        true
    }

    #[inline(always)]
    fn tcp_checksum_holds(&self) -> bool {
        checksum_holds_at_xdp(self.ctx) != 0
    }
}

/// What there is to sum: offset, length, and the pseudo-header's sum.
#[inline(always)]
fn to_sum(followed: &Followed) -> (u32, u32, u32) {
    let Followed { key, header, end, l4, .. } = followed;
    let len = end.wrapping_sub(u32::from_be(header.seq)).wrapping_add(u32::from(header.offset >> 4) * 4);
    // A handshake is completed by a segment without SYN; its FIN counts as a byte in `end`.
    let len = len.wrapping_sub(u32::from(header.flags & tcp::flag::FIN));
    (*l4, len, pseudo_header(&key.src, &key.dst, key.src.is_v4(), key.proto, len as u16))
}

/// A global function, which the verifier follows once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn checksum_holds_at_tc(skb: *mut __sk_buff) -> u32 {
    let (Some(followed), Some(buffer)) = (followed(), checksum_block()) else {
        return 0;
    };
    let (at, len, mut sum) = to_sum(followed);
    if len > BLOCK * BLOCKS || followed.header.check == csum::fold(sum) {
        return 1;
    }
    let bytes = ptr::from_mut(buffer);
    let mut done = 0;
    while done < BLOCK * BLOCKS && done + BLOCK <= len {
        // SAFETY: `bytes` is writable for BLOCK bytes, and readable for as many, a multiple of four.
        unsafe {
            if bpf_skb_load_bytes(skb.cast(), at + done, bytes.cast(), BLOCK) != 0 {
                return 0;
            }
            sum = bpf_csum_diff(ptr::null_mut(), 0, bytes.cast(), BLOCK, sum) as u32;
        }
        done += BLOCK;
    }
    if len != done {
        // Between 1 and BLOCK in a form that the verifier follows: "R3 min value is outside of the allowed memory range".
        let left = (black_box(len.wrapping_sub(done).wrapping_sub(1)) & (BLOCK - 1)) + 1;
        // Word by word: a call of `memset` is a loop over bytes.
        let [a, b, c, d, e, f, g, h] = &mut buffer.words;
        for word in [a, b, c, d, e, f, g, h] {
            // SAFETY: a reference.
            unsafe { ptr::from_mut(word).write_volatile(0) };
        }
        let bytes = ptr::from_mut(buffer);
        // SAFETY: as above.
        unsafe {
            if bpf_skb_load_bytes(skb.cast(), at + done, bytes.cast(), left) != 0 {
                return 0;
            }
            sum = bpf_csum_diff(ptr::null_mut(), 0, bytes.cast(), BLOCK, sum) as u32;
        }
    }
    u32::from(csum::fold(sum) == u16::MAX)
}

/// The same at XDP, for a segment without payload, which ends a handshake as a rule.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn checksum_holds_at_xdp(frame: *mut xdp_md) -> u32 {
    const LONGEST_HEADER: u32 = 60;
    let Some(followed) = followed() else {
        return 0;
    };
    let (l4, len, mut sum) = to_sum(followed);
    let ctx = XdpContext::new(frame);
    let mut at = 0;
    while at < LONGEST_HEADER && at < len {
        // Hidden from the compiler, which otherwise computes the word's end first: "R4 offset is outside of the packet".
        let Some(word) = ptr_at::<Word>(&ctx, black_box(((l4 & MOST_HEADERS) + at) as usize)) else {
            return 0;
        };
        // SAFETY: `ptr_at` checked the bounds.
        sum = csum::add(sum, unsafe { (*word).0 });
        at += size_of::<Word>() as u32;
    }
    u32::from(at == len && csum::fold(sum) == u16::MAX)
}

#[repr(C, packed(2))]
#[derive(Clone, Copy)]
pub struct Word(pub u32);
