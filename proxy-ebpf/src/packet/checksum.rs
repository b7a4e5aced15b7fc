//! Transport checksums of an skb: updating one, computing the pseudo-header's sum, and detecting a partial checksum. The
//! arithmetic itself is `proxy_common::csum`.

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, helpers::bpf_l4_csum_replace, programs::TcContext};
use proxy_common::{Addr, Counter, csum};

use crate::{base::verdict::DropReason, packet::access::ptr_at};

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

#[repr(C, packed(2))]
#[derive(Clone, Copy)]
pub struct Word(pub u32);
