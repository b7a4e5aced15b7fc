//! The socket hooks: the node's own processes (and pods', with `--socket-lb all`) are connected to a backend when they connect
//! or send, so their packets need no translation.
//!
//! A rejected connect() or sendmsg() fails with ECONNREFUSED. UDP's connect() is never rejected: ping uses it to find a source
//! address. Policy Local without a local endpoint is left to the egress hook, which drops.

pub mod sock_addr;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use proxy_common::{
    Addr, Counter, CtKey, Frontend, FrontendKind, Half, Port, Proto, SockKey, SockPeer,
    node::{port_bits, role},
    socket,
};

use crate::{
    base::{
        globals,
        maps::{NODE_CONFIG, SOCK_BACKEND, SOCK_REVNAT},
        scratch::SelectedBackend,
        verdict::DropReason,
    },
    conntrack::entry,
    hooks::socket::sock_addr::fields,
    load_balancing::{
        backend, cluster_ip, frontend,
        select::{Origin, select_backend},
        source_ranges,
    },
    observe::{
        counters::count,
        drops,
        events::{self, SocketRequest},
        service_stats,
    },
};

use self::sock_addr::Family;

/// Return values of sock_addr programs.
const ALLOW: i32 = 1;

const REFUSE: i32 = 0;

const ECONNREFUSED: i32 = 111;

/// The destination that a process requests, and the socket it uses.
struct Destination {
    addr: Addr,
    port: Port,
    proto: u8,
    /// The socket's cookie.
    cookie: u64,
    /// The cookie of its network namespace.
    netns: u64,
    /// Address roles at which this socket may use NodePorts.
    roles: u32,
}

/// Reads the destination. `None`: a socket or protocol that is not translated.
#[inline(always)]
fn destination<F: Family>(ctx: &SockAddrContext) -> Option<Destination> {
    let fields = fields(ctx);
    let proto = fields.protocol as u8;
    if !matches!(proto, Proto::TCP | Proto::UDP) {
        return None;
    }
    // SAFETY: the kernel's context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let only = globals::socket_netns();
    if only != 0 && only != netns {
        return None;
    }
    let roles = if netns == globals::host_netns() { role::NODEPORT | role::LOOPBACK } else { role::NODEPORT };
    Some(Destination {
        addr: F::load(fields),
        port: Port::from_be(fields.user_port as u16),
        proto,
        // SAFETY: the kernel's context.
        cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        netns,
        roles,
    })
}

/// Whether a load balancer address with source ranges accepts the socket's new flow. For an unbound socket of the
/// node its primary address is checked. A pod's socket is never accepted: its packets have its address, and the
/// packet hooks check that.
#[inline(always)]
fn source_allowed(frontend: &Frontend, dest: &Destination, mut source: Addr) -> bool {
    if dest.netns != globals::host_netns() {
        return false;
    }
    if source.is_unspecified() {
        let Some(config) = NODE_CONFIG.get(0) else {
            return false;
        };
        source = if dest.addr.is_v4() { config.primary_v4 } else { config.primary_v6 };
    }
    source_ranges::allow(frontend, &source)
}

/// For a socket outside the frontend's source ranges: leaves it untranslated, so that the packet hooks drop its packets. Packets
/// of the node to its own NodePort pass no packet hook, so there the call fails with ECONNREFUSED.
#[inline(always)]
fn outside_source_ranges(frontend: &Frontend, dest: &Destination) -> i32 {
    if frontend.kind != FrontendKind::NodePort as u32 || dest.netns != globals::host_netns() {
        return ALLOW;
    }
    reject(dest, frontend.service, Counter::SrcRange)
}

/// The connect hooks.
#[inline(always)]
pub fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    let Some(dest) = destination::<F>(ctx) else {
        return ALLOW;
    };
    let bits = frontend::port_flags(dest.port);
    let Some(frontend) = frontend::find(&dest.addr, dest.port, dest.proto, bits, dest.roles) else {
        forget_frontend(&dest, bits);
        return without_frontend(&dest, Proto::TCP);
    };
    if frontend.has(Frontend::SOURCE_RANGES) && !source_allowed(frontend, &dest, F::bound(fields(ctx))) {
        return if dest.proto == Proto::UDP { ALLOW } else { outside_source_ranges(frontend, &dest) };
    }
    match select(&dest, frontend) {
        Ok(peer) => translate::<F>(ctx, &dest, &peer),
        Err(reason) if dest.proto == Proto::UDP || reason == Counter::NoLocalEndpoints => ALLOW,
        Err(reason) => reject(&dest, frontend.service, reason),
    }
}

/// The sendmsg hooks, for unconnected UDP sockets.
#[inline(always)]
pub fn sendmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    let Some(dest) = destination::<F>(ctx) else {
        return ALLOW;
    };
    let bits = frontend::port_flags(dest.port);
    let Some(frontend) = frontend::find(&dest.addr, dest.port, dest.proto, bits, dest.roles) else {
        if !is_peer(ctx, &dest) {
            forget_frontend(&dest, bits);
        }
        return without_frontend(&dest, Proto::UDP);
    };
    if frontend.may_be_node_address() && is_answer::<F>(ctx, &dest) {
        return ALLOW;
    }
    // A socket keeps its backend per frontend: a resolver expects answers from one server.
    let request_key = SockKey::new(dest.cookie, dest.addr, dest.port, dest.proto);
    // SAFETY: an LRU value may be reused for another key while it is read; the result is checked below.
    if let Some(peer) = unsafe { SOCK_BACKEND.get(request_key) } {
        let peer = *peer;
        if let Some(backend) = backend::active(peer.backend)
            && backend.addr.is(&peer.addr)
            && backend.port == peer.port
        {
            return translate::<F>(ctx, &dest, &peer);
        }
    }
    if frontend.has(Frontend::SOURCE_RANGES) && !source_allowed(frontend, &dest, F::source(fields(ctx))) {
        return outside_source_ranges(frontend, &dest);
    }
    match select(&dest, frontend) {
        Ok(peer) => {
            let _full = SOCK_BACKEND.insert(request_key, peer, 0);
            translate::<F>(ctx, &dest, &peer)
        }
        Err(Counter::NoLocalEndpoints) => ALLOW,
        Err(reason) => reject(&dest, frontend.service, reason),
    }
}

/// A destination that is not a frontend. Another port of a ClusterIP is rejected for protocol `refused`: TCP at
/// connect, UDP at send.
#[inline(always)]
fn without_frontend(dest: &Destination, refused: u8) -> i32 {
    if dest.proto != refused || !cluster_ip::is_cluster_ip(&dest.addr) {
        return ALLOW;
    }
    reject(dest, 0, Counter::NoServicePort)
}

/// Selects a backend for the socket's new flow, which is counted and reported.
#[inline(always)]
fn select(dest: &Destination, frontend: &Frontend) -> Result<SockPeer, DropReason> {
    let mut selected = SelectedBackend::NONE;
    // The socket has no address yet: its network namespace is the client.
    let client = socket::netns_addr(dest.netns);
    select_backend(frontend, Origin::Node, &client, &mut selected)?;
    service_stats::count_flow(frontend.service);
    events::socket_request(&SocketRequest {
        client: &client,
        addr: &dest.addr,
        port: dest.port,
        proto: dest.proto,
        service: frontend.service,
        to: Some((&selected.backend, selected.id)),
        reason: 0,
    });
    Ok(SockPeer {
        addr: selected.backend.addr,
        port: selected.backend.port,
        reserved: 0,
        backend: selected.id,
        service: frontend.service,
    })
}

/// Forgets the frontend that a backend's address stood for: a UDP socket may use a frontend first and then one of its
/// backends directly, and is then shown the backend's own address.
#[inline(always)]
fn forget_frontend(dest: &Destination, bits: u32) {
    if dest.proto == Proto::UDP && bits & port_bits::backend(Proto::UDP) != 0 {
        let request_key = SockKey::new(dest.cookie, dest.addr, dest.port, dest.proto);
        let _gone = SOCK_REVNAT.remove(request_key);
    }
}

/// Whether the socket is connected to the port it sends to. A connected IPv6 socket with a v4-mapped peer enters this
/// hook with every datagram (udpv6_sendmsg passes it to IPv4 with the peer as its destination); that is not a new
/// request.
#[inline(always)]
fn is_peer(ctx: &SockAddrContext, dest: &Destination) -> bool {
    const ESTABLISHED: u32 = 1;
    // SAFETY: the context is valid while the program runs, and so is the socket it points to.
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if socket.is_null() {
        return false;
    }
    // SAFETY: as above; fields that the verifier lets socket-address programs read, each in its own size.
    let (state, port) = unsafe { ((*socket).state, (*socket).dst_port) };
    state == ESTABLISHED && port == dest.port.be()
}

/// Whether the datagram answers one that arrived from the frontend's own address: another node may have it, and begin flows from
/// that port. A socket that is bound to no address is taken to answer from the node's primary one.
#[inline(always)]
fn is_answer<F: Family>(ctx: &SockAddrContext, dest: &Destination) -> bool {
    if dest.netns != globals::host_netns() {
        return false;
    }
    // SAFETY: the context is valid while the program runs, and so is the socket it points to.
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if socket.is_null() {
        return false;
    }
    // SAFETY: as above; a field that the verifier lets socket-address programs read, in its own size.
    let port = unsafe { (*socket).src_port };
    let mut source = F::source(fields(ctx));
    if source.is_unspecified() {
        let Some(config) = NODE_CONFIG.get(0) else {
            return false;
        };
        source = if dest.addr.is_v4() { config.primary_v4 } else { config.primary_v6 };
    }
    let key = CtKey::new(source, Port::new(port as u16), dest.addr, dest.port, dest.proto, Half::Egress);
    entry::is_direct_reply(&key)
}

/// Writes the backend into the context and records the frontend that it stands for.
#[inline(always)]
fn translate<F: Family>(ctx: &SockAddrContext, dest: &Destination, peer: &SockPeer) -> i32 {
    let key = SockKey::new(dest.cookie, peer.addr, peer.port, dest.proto);
    let frontend = SockPeer { addr: dest.addr, port: dest.port, ..*peer };
    let _full = SOCK_REVNAT.insert(key, frontend, 0);
    // SAFETY: the context is valid and writable in these fields.
    let fields = unsafe { &mut *ctx.sock_addr };
    F::store(fields, &peer.addr);
    fields.user_port = u32::from(peer.port.be());
    count(Counter::SocketTranslated);
    ALLOW
}

#[inline(always)]
fn reject(dest: &Destination, service: u32, reason: Counter) -> i32 {
    drops::socket_refused(&SocketRequest {
        client: &socket::netns_addr(dest.netns),
        addr: &dest.addr,
        port: dest.port,
        proto: dest.proto,
        service,
        to: None,
        reason: reason as u32,
    });
    if globals::has_set_retval() {
        // SAFETY: takes a number only; sets the return value of the system call.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    REFUSE
}

/// The recvmsg and getpeername hooks: show the process the frontend in place of the backend.
#[inline(always)]
pub fn show_frontend<F: Family>(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let fields = unsafe { &mut *ctx.sock_addr };
    let proto = fields.protocol as u8;
    if !matches!(proto, Proto::TCP | Proto::UDP) {
        return ALLOW;
    }
    // SAFETY: the kernel's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let key = SockKey::new(cookie, F::load(fields), Port::from_be(fields.user_port as u16), proto);
    // SAFETY: an LRU value may be reused for another key while it is read; the process would see another frontend for
    // one datagram.
    if let Some(frontend) = unsafe { SOCK_REVNAT.get(key) } {
        let frontend = *frontend;
        F::store(fields, &frontend.addr);
        fields.user_port = u32::from(frontend.port.be());
    }
    ALLOW
}
