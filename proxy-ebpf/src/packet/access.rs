//! Access to a packet's bytes, by pointer (bounds-checked, linear part only) or by copy, and to fields of its context.

use core::{hint::black_box, mem::size_of, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::__sk_buff,
    helpers::{bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes},
    programs::{TcContext, XdpContext},
};

/// Direct packet access: an skb at tc, a buffer at XDP.
pub trait PacketData {
    /// Start and end of the linear part. Read again for each check: from checks that it can relate, the compiler
    /// derives arithmetic that the verifier rejects ("pointer arithmetic on pkt_end prohibited", "offset is outside
    /// of the packet").
    fn bounds(&self) -> (usize, usize);
}

impl PacketData for TcContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let skb = skb(self);
        // SAFETY: fields of the context, which is valid while the program runs.
        let (data, end) =
            unsafe { ((&raw const skb.data).read_volatile(), (&raw const skb.data_end).read_volatile()) };
        (data as usize, end as usize)
    }
}

impl PacketData for XdpContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: fields of the context, which is valid while the program runs.
        let (data, end) = unsafe {
            ((&raw const (*self.ctx).data).read_volatile(), (&raw const (*self.ctx).data_end).read_volatile())
        };
        (data as usize, end as usize)
    }
}

/// Inputs of a route lookup that are not in the packet.
pub trait RouteContext: EbpfContext {
    /// The device the packet came in by; 0 where the node itself made it.
    fn ingress_ifindex(&self) -> u32;
    fn mark(&self) -> u32;
}

impl RouteContext for TcContext {
    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        let skb = black_box(self.skb.skb);
        // SAFETY: as in `skb`.
        unsafe { (*skb).ingress_ifindex }
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        let skb = black_box(self.skb.skb);
        // SAFETY: as in `skb`.
        unsafe { (*skb).mark }
    }
}

impl RouteContext for XdpContext {
    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        // SAFETY: a field of the context, which is valid while the program runs.
        unsafe { (&raw const (*self.ctx).ingress_ifindex).read_volatile() }
    }

    /// There is no skb yet that could have one.
    #[inline(always)]
    fn mark(&self) -> u32 {
        0
    }
}

/// A pointer to a `T` at `offset`, if the linear part of the packet contains one.
#[inline(always)]
pub fn ptr_at<T>(ctx: &impl PacketData, offset: usize) -> Option<*mut T> {
    let (data, end) = ctx.bounds();
    let start = data + offset;
    if start + size_of::<T>() > end {
        return None;
    }
    Some(start as *mut T)
}

/// Like [`ptr_at`], but pulls the header into the linear part first if it is (partly) outside. Only then: headers of
/// received packets are linear as a rule, and pulling payload costs an allocation.
#[inline(always)]
pub fn pull_at<T>(ctx: &TcContext, offset: usize) -> Option<*mut T> {
    if let Some(header) = ptr_at(ctx, offset) {
        return Some(header);
    }
    let end = offset + size_of::<T>();
    if end > ctx.len() as usize {
        return None;
    }
    // SAFETY: the kernel's context; pointers into the packet are made anew after this. After a failure the
    // check that follows finds the packet too short.
    unsafe { bpf_skb_pull_data(ctx.as_ptr().cast::<__sk_buff>(), end as u32) };
    ptr_at(ctx, offset)
}

#[inline(always)]
pub fn skb(ctx: &TcContext) -> &__sk_buff {
    // SAFETY: the context is a valid __sk_buff while the program runs; the verifier turns each field access into a
    // load from the real skb.
    unsafe { &*ctx.skb.skb }
}

/// The device whose hook runs. Reads through a pointer of its own: where several stages read this field, the compiler
/// shares one pointer to it, which the verifier rejects ("dereference of modified ctx ptr R6 off=40 disallowed").
#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    let skb = black_box(ctx.skb.skb);
    // SAFETY: as in `skb`.
    unsafe { (*skb).ifindex }
}

/// Copies a `T` out of the packet; false if the packet is too short.
#[inline(always)]
pub fn load<T>(ctx: &TcContext, offset: u32, to: &mut T) -> bool {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: `to` is writable for its size, and any bytes are a valid `T`: integers and arrays of them.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, ptr::from_mut(to).cast(), size_of::<T>() as u32) == 0 }
}

/// Writes a `T` into the packet; false if the packet is too short. Leaves skb->csum as it is: the caller updates a
/// checksum in the packet, so the sum over the whole packet does not change.
#[inline(always)]
pub fn store<T>(ctx: &TcContext, offset: u32, from: &T) -> bool {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: `from` is readable for its size; no pointer into the packet is used after this call.
    unsafe { bpf_skb_store_bytes(skb, offset, ptr::from_ref(from).cast(), size_of::<T>() as u32, 0) == 0 }
}
