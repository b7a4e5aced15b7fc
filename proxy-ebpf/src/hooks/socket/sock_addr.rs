//! Addresses in the context of the socket hooks, per address family.

use aya_ebpf::{bindings::bpf_sock_addr, programs::SockAddrContext};
use proxy_common::Addr;

/// Reads and writes the addresses of one family in the context.
pub trait Family {
    fn load(ctx: &bpf_sock_addr) -> Addr;
    fn store(ctx: &mut bpf_sock_addr, addr: &Addr);
    /// The address that a connecting socket is bound to; unspecified if unbound.
    fn bound(ctx: &bpf_sock_addr) -> Addr;
    /// The source address of a datagram: its socket's, or the one that came with it (IP_PKTINFO); unspecified
    /// without.
    fn source(ctx: &bpf_sock_addr) -> Addr;
}

/// The hooks of AF_INET sockets.
pub struct V4;

/// The hooks of AF_INET6 sockets, which see IPv4 destinations in v4-mapped form, as [`Addr`] stores them.
pub struct V6;

impl Family for V4 {
    #[inline(always)]
    fn load(ctx: &bpf_sock_addr) -> Addr {
        Addr::from_v4_be(ctx.user_ip4)
    }

    #[inline(always)]
    fn store(ctx: &mut bpf_sock_addr, addr: &Addr) {
        ctx.user_ip4 = addr.v4_be();
    }

    #[inline(always)]
    fn bound(ctx: &bpf_sock_addr) -> Addr {
        // SAFETY: sock_addr programs always have a socket; the verifier checks which fields are read.
        Addr::from_v4_be(unsafe { (*ctx.__bindgen_anon_1.sk).src_ip4 })
    }

    #[inline(always)]
    fn source(ctx: &bpf_sock_addr) -> Addr {
        Addr::from_v4_be(ctx.msg_src_ip4)
    }
}

impl Family for V6 {
    #[inline(always)]
    fn load(ctx: &bpf_sock_addr) -> Addr {
        Addr::from_v6_be(read_words(&ctx.user_ip6))
    }

    #[inline(always)]
    fn store(ctx: &mut bpf_sock_addr, addr: &Addr) {
        let [a, b, c, d] = addr.words();
        // SAFETY: fields of the context. Volatile, so that the compiler does not merge the stores: some kernels'
        // verifiers reject stores wider than 4 bytes here.
        unsafe {
            (&raw mut ctx.user_ip6[0]).write_volatile(a);
            (&raw mut ctx.user_ip6[1]).write_volatile(b);
            (&raw mut ctx.user_ip6[2]).write_volatile(c);
            (&raw mut ctx.user_ip6[3]).write_volatile(d);
        }
    }

    #[inline(always)]
    fn bound(ctx: &bpf_sock_addr) -> Addr {
        // SAFETY: as for IPv4.
        Addr::from_v6_be(read_words(unsafe { &(*ctx.__bindgen_anon_1.sk).src_ip6 }))
    }

    #[inline(always)]
    fn source(ctx: &bpf_sock_addr) -> Addr {
        Addr::from_v6_be(read_words(&ctx.msg_src_ip6))
    }
}

#[inline(always)]
fn read_words(words: &[u32; 4]) -> [u32; 4] {
    // SAFETY: fields of the context or of its socket; volatile for the same reason as the stores above.
    unsafe {
        [
            (&raw const words[0]).read_volatile(),
            (&raw const words[1]).read_volatile(),
            (&raw const words[2]).read_volatile(),
            (&raw const words[3]).read_volatile(),
        ]
    }
}

#[inline(always)]
pub fn fields(ctx: &SockAddrContext) -> &bpf_sock_addr {
    // SAFETY: the context is valid while the program runs.
    unsafe { &*ctx.sock_addr }
}
