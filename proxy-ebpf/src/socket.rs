//! The socket hooks: the node's own processes (and pods', with `--socket-lb all`) are sent to a backend when
//! they connect or send, so that nothing is left to do for their packets.
//!
//! A refused connect() or sendmsg() fails with ECONNREFUSED. UDP's connect() is never refused: ping probes for
//! a source address with it. Policy Local without a local endpoint is left to the egress hook, which drops.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use proxy_common::{
    Addr, Counter, Frontend, Port, Proto, SockKey, SockPeer, client,
    node::{port_bits, role},
};

use crate::{
    count::count,
    globals,
    maps::{NODE_CONFIG, SOCK_BACKEND, SOCK_REVNAT},
    nobody,
    service::{self, Chosen, Origin},
    watch,
};

/// Return codes of sock_addr programs.
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// How a family's address is read from and written to the context.
pub trait Family {
    fn load(ctx: &bpf_sock_addr) -> Addr;
    fn store(ctx: &mut bpf_sock_addr, addr: &Addr);
    /// The address that a connecting socket is bound to; unspecified where it is not.
    fn bound(ctx: &bpf_sock_addr) -> Addr;
    /// The source of a datagram: the address that its socket is bound to or that came with it; unspecified without.
    fn source(ctx: &bpf_sock_addr) -> Addr;
}

/// AF_INET sockets' hooks.
pub struct V4;
/// AF_INET6 sockets' hooks, which see IPv4 destinations in v4-mapped form, just as [`Addr`] holds them.
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
        // SAFETY: sock_addr programs always have a socket; the verifier checks what is read of it.
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
        // SAFETY: fields of the context. Volatile, so that the compiler does not merge them: the verifier
        // refuses wider stores than 4 bytes here on some kernels.
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

/// A destination that a process asked for.
struct Wanted {
    addr: Addr,
    port: Port,
    proto: u8,
    /// The socket's cookie.
    cookie: u64,
    /// Its network namespace's.
    netns: u64,
    /// Address roles under which NodePorts are served to this socket.
    roles: u32,
}

/// `None`: a socket or protocol that is not ours to translate.
#[inline(always)]
fn wanted<F: Family>(ctx: &SockAddrContext) -> Option<Wanted> {
    let fields = fields(ctx);
    let proto = fields.protocol as u8;
    if !matches!(proto, Proto::TCP | Proto::UDP) {
        return None;
    }
    // SAFETY: the context the kernel gave.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let only = globals::socket_netns();
    if only != 0 && only != netns {
        return None;
    }
    let roles = if netns == globals::host_netns() { role::NODEPORT | role::LOOPBACK } else { role::NODEPORT };
    Some(Wanted {
        addr: F::load(fields),
        port: Port::from_be(fields.user_port as u16),
        proto,
        // SAFETY: the context the kernel gave.
        cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        netns,
        roles,
    })
}

#[inline(always)]
fn fields(ctx: &SockAddrContext) -> &bpf_sock_addr {
    // SAFETY: the context is valid while the program runs.
    unsafe { &*ctx.sock_addr }
}

/// Whether a load balancer's address with source ranges lets the socket's new flow in. An unbound socket of the node
/// is judged by the node's primary address; a pod's by its packets, which show its address. Who is not let in is left
/// alone here: its packets are dropped by the packet hooks.
#[inline(always)]
fn lets_in(frontend: &Frontend, wanted: &Wanted, mut source: Addr) -> bool {
    if wanted.netns != globals::host_netns() {
        return false;
    }
    if source.is_unspecified() {
        let Some(config) = NODE_CONFIG.get(0) else {
            return false;
        };
        source = if wanted.addr.is_v4() { config.primary_v4 } else { config.primary_v6 };
    }
    service::lets_in(frontend, &source)
}

#[inline(always)]
pub fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    let Some(wanted) = wanted::<F>(ctx) else {
        return ALLOW;
    };
    let bits = service::bits_of(wanted.port);
    let Some(frontend) = service::frontend(&wanted.addr, wanted.port, wanted.proto, bits, wanted.roles)
    else {
        forget_answer(&wanted, bits);
        return no_frontend(&wanted, Proto::TCP);
    };
    if frontend.has(Frontend::SOURCE_RANGES) && !lets_in(frontend, &wanted, F::bound(fields(ctx))) {
        return ALLOW;
    }
    let mut chosen = Chosen::NOTHING;
    // Who it is has no address yet: the namespace stands in for it.
    let client = client::netns(wanted.netns);
    match service::choose(frontend, Origin::Inside, &client, &mut chosen) {
        Ok(()) => {
            let peer = SockPeer {
                addr: chosen.backend.addr,
                port: chosen.backend.port,
                reserved: 0,
                backend: chosen.id,
                service: frontend.service,
            };
            begun(&wanted, &client, frontend, &chosen);
            send_to::<F>(ctx, &wanted, &peer)
        }
        Err(Counter::NoLocalEndpoints) => ALLOW,
        Err(reason) => {
            if wanted.proto == Proto::UDP {
                return ALLOW;
            }
            turn_away(&wanted, frontend.service, reason)
        }
    }
}

#[inline(always)]
pub fn sendmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    let Some(wanted) = wanted::<F>(ctx) else {
        return ALLOW;
    };
    let bits = service::bits_of(wanted.port);
    let Some(frontend) = service::frontend(&wanted.addr, wanted.port, wanted.proto, bits, wanted.roles)
    else {
        if !is_peer(ctx, &wanted) {
            forget_answer(&wanted, bits);
        }
        return no_frontend(&wanted, Proto::UDP);
    };
    // One socket stays with its backend per frontend: a resolver matches answers to one server.
    let asked = SockKey::new(wanted.cookie, wanted.addr, wanted.port, wanted.proto);
    // SAFETY: an LRU value may be reused for another key while it is read; what is read is checked below.
    if let Some(peer) = unsafe { SOCK_BACKEND.get(asked) } {
        let peer = *peer;
        if let Some(backend) = service::active_backend(peer.backend)
            && backend.addr.is(&peer.addr)
            && backend.port == peer.port
        {
            return send_to::<F>(ctx, &wanted, &peer);
        }
    }
    if frontend.has(Frontend::SOURCE_RANGES) && !lets_in(frontend, &wanted, F::source(fields(ctx))) {
        return ALLOW;
    }
    let mut chosen = Chosen::NOTHING;
    // Who it is has no address yet: the namespace stands in for it.
    let client = client::netns(wanted.netns);
    match service::choose(frontend, Origin::Inside, &client, &mut chosen) {
        Ok(()) => {
            let peer = SockPeer {
                addr: chosen.backend.addr,
                port: chosen.backend.port,
                reserved: 0,
                backend: chosen.id,
                service: frontend.service,
            };
            let _full = SOCK_BACKEND.insert(asked, peer, 0);
            begun(&wanted, &client, frontend, &chosen);
            send_to::<F>(ctx, &wanted, &peer)
        }
        Err(Counter::NoLocalEndpoints) => ALLOW,
        Err(reason) => turn_away(&wanted, frontend.service, reason),
    }
}

/// To no frontend: another port of a ClusterIP is refused to `refused`, TCP when it connects and UDP when it sends.
#[inline(always)]
fn no_frontend(wanted: &Wanted, refused: u8) -> i32 {
    if wanted.proto != refused || !nobody::is_cluster_ip(&wanted.addr) {
        return ALLOW;
    }
    turn_away(wanted, 0, Counter::NoServicePort)
}

/// A socket's flow to a Service began.
#[inline(always)]
fn begun(wanted: &Wanted, client: &Addr, frontend: &Frontend, chosen: &Chosen) {
    watch::flow(frontend.service);
    watch::asked(&watch::Asked {
        client,
        addr: &wanted.addr,
        port: wanted.port,
        proto: wanted.proto,
        service: frontend.service,
        to: Some((&chosen.backend, chosen.id)),
        reason: 0,
    });
}

/// One UDP socket may ask a frontend first and then a backend under its own address: the latest question wins, and
/// its answer is shown as what it is.
#[inline(always)]
fn forget_answer(wanted: &Wanted, bits: u32) {
    if wanted.proto == Proto::UDP && bits & port_bits::backend(Proto::UDP) != 0 {
        let asked = SockKey::new(wanted.cookie, wanted.addr, wanted.port, wanted.proto);
        let _gone = SOCK_REVNAT.remove(asked);
    }
}

/// Whether the socket is connected to the port it sends to. A connected IPv6 socket of a v4-mapped peer comes here
/// with every datagram (udpv6_sendmsg hands it to IPv4 with the peer as its destination): no question of its own.
#[inline(always)]
fn is_peer(ctx: &SockAddrContext, wanted: &Wanted) -> bool {
    const ESTABLISHED: u32 = 1;
    // SAFETY: the context is valid while the program runs, and so is the socket it points to.
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if socket.is_null() {
        return false;
    }
    // SAFETY: as above; fields that the verifier lets socket-address programs read, each in its own size.
    let (state, port) = unsafe { ((*socket).state, (*socket).dst_port) };
    state == ESTABLISHED && port == wanted.port.be()
}

/// Writes the backend into the context and remembers which frontend it stands for.
#[inline(always)]
fn send_to<F: Family>(ctx: &SockAddrContext, wanted: &Wanted, peer: &SockPeer) -> i32 {
    let key = SockKey::new(wanted.cookie, peer.addr, peer.port, wanted.proto);
    let frontend = SockPeer { addr: wanted.addr, port: wanted.port, ..*peer };
    let _full = SOCK_REVNAT.insert(key, frontend, 0);
    // SAFETY: the context is valid and writable in these fields.
    let fields = unsafe { &mut *ctx.sock_addr };
    F::store(fields, &peer.addr);
    fields.user_port = u32::from(peer.port.be());
    count(Counter::SocketTranslated);
    ALLOW
}

#[inline(always)]
fn turn_away(wanted: &Wanted, service: u32, reason: Counter) -> i32 {
    watch::refused(&watch::Asked {
        client: &client::netns(wanted.netns),
        addr: &wanted.addr,
        port: wanted.port,
        proto: wanted.proto,
        service,
        to: None,
        reason: reason as u32,
    });
    if globals::has_set_retval() {
        // SAFETY: takes a number; sets what the system call returns.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    REFUSE
}

/// recvmsg and getpeername: where a backend was put in for a frontend, the process sees the frontend.
#[inline(always)]
pub fn show_frontend<F: Family>(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let fields = unsafe { &mut *ctx.sock_addr };
    let proto = fields.protocol as u8;
    if !matches!(proto, Proto::TCP | Proto::UDP) {
        return ALLOW;
    }
    // SAFETY: the context the kernel gave.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let key = SockKey::new(cookie, F::load(fields), Port::from_be(fields.user_port as u16), proto);
    // SAFETY: an LRU value may be reused for another key while it is read: the process would be shown another
    // frontend for one datagram.
    if let Some(frontend) = unsafe { SOCK_REVNAT.get(key) } {
        let frontend = *frontend;
        F::store(fields, &frontend.addr);
        fields.user_port = u32::from(frontend.port.be());
    }
    ALLOW
}
