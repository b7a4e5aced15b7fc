//! Closes connected UDP sockets that send to an endpoint which is gone, so that their owners connect again: the kernel
//! evaluates connect()'s translation only once.
//!
//! The node's own sockets, and with `--socket-lb all` those of pods whose namespaces can be entered. Called by
//! [`super::udp_flush`].

use std::{
    collections::{HashMap, HashSet},
    io,
};

use bytemuck::{bytes_of, pod_read_unaligned};
use proxy_common::{Frontend, FrontendKey, FrontendKind, Port, Proto, SockKey};

use super::request::Maps;
use crate::{
    config::SocketLb,
    datapath::{
        nf_conntrack::{self, Translated},
        sock_diag::{self, Connected, Elsewhere, SockDiag},
    },
};

/// Closes sockets; what it cannot do is logged once.
pub(super) struct Sockets {
    socket_lb: SocketLb,
    /// That the kernel cannot close sockets has been logged.
    close_failed: bool,
    /// That pods' namespaces cannot be entered has been logged.
    enter_failed: bool,
}

impl Sockets {
    pub(super) fn new(socket_lb: SocketLb) -> Self {
        Self { socket_lb, close_failed: false, enter_failed: false }
    }

    /// Closes the connected sockets among `stale`. With `unserved`, also the node's own sockets that were connected to a
    /// ClusterIP before it had an endpoint: they passed the socket hooks untranslated and stay so.
    pub(super) fn close(&mut self, maps: &Maps, stale: &HashSet<SockKey>, unserved: bool) -> usize {
        if self.socket_lb == SocketLb::Off || stale.is_empty() && !unserved {
            return 0;
        }
        let mut left: HashMap<u64, Vec<SockKey>> = HashMap::new();
        for key in stale {
            left.entry(key.cookie).or_default().push(*key);
        }
        let closed = self.close_here(maps, &mut left, unserved).unwrap_or_else(|error| {
            if !std::mem::replace(&mut self.close_failed, true) {
                tracing::warn!(
                    %error,
                    "connected UDP sockets of removed endpoints cannot be closed (CONFIG_INET_DIAG_DESTROY, \
                     CONFIG_INET_UDP_DIAG): they keep sending there until their owners reconnect"
                );
            }
            0
        });
        if self.socket_lb == SocketLb::All && !left.is_empty() {
            return closed + self.close_elsewhere(&mut left);
        }
        closed
    }

    fn close_here(
        &self,
        maps: &Maps,
        left: &mut HashMap<u64, Vec<SockKey>>,
        unserved: bool,
    ) -> io::Result<usize> {
        let mut diag = SockDiag::open()?;
        let mut closed = close_stale(&mut diag, left)?;
        if unserved {
            let mut served = Vec::new();
            for socket in diag.connected_udp()? {
                if is_served_now(maps, &socket)? {
                    served.push(socket);
                }
            }
            if !served.is_empty() {
                // nf_conntrack still translates those of an earlier proxy.
                let others = nf_conntrack::translated()?;
                served.retain(|socket| !others.iter().any(|flow| is_of(flow, socket)));
            }
            for socket in &served {
                closed += usize::from(diag.destroy(socket)?);
            }
        }
        Ok(closed)
    }

    fn close_elsewhere(&mut self, left: &mut HashMap<u64, Vec<SockKey>>) -> usize {
        let mut closed = 0;
        let result = sock_diag::elsewhere(|mut diag| {
            closed += close_stale(&mut diag, left)?;
            Ok(!left.is_empty())
        });
        let trouble = match result {
            // This process sees only its own container's processes.
            Ok(Elsewhere { entered: 0, closed: 0 }) if !left.is_empty() => {
                Some("no other network namespace is visible".to_owned())
            }
            Ok(Elsewhere { closed: 0, .. }) => None,
            Ok(Elsewhere { closed, .. }) => Some(format!("{closed} network namespaces cannot be entered")),
            Err(error) => Some(error.to_string()),
        };
        if let Some(trouble) = trouble
            && !std::mem::replace(&mut self.enter_failed, true)
        {
            tracing::warn!(
                "pods' connected UDP sockets keep sending to removed endpoints until their owners reconnect: {trouble} \
                 (this needs the host's /proc and CAP_SYS_ADMIN)"
            );
        }
        closed
    }
}

/// Closes those of `left` that are in this namespace, and removes them from it.
fn close_stale(diag: &mut SockDiag, left: &mut HashMap<u64, Vec<SockKey>>) -> io::Result<usize> {
    let mut closed = 0;
    if left.is_empty() {
        return Ok(0);
    }
    for socket in diag.connected_udp()? {
        let sends_there = |key: &SockKey| (key.addr, key.port) == (socket.peer, socket.port);
        let is_stale = left.get(&socket.cookie).is_some_and(|keys| keys.iter().any(sends_there));
        if is_stale {
            closed += usize::from(diag.destroy(&socket)?);
            left.remove(&socket.cookie);
        }
    }
    Ok(closed)
}

/// Whether nf_conntrack translates what the socket sends.
fn is_of(flow: &Translated, socket: &Connected) -> bool {
    let (peer, port) = (socket.peer, socket.port);
    flow.proto == Proto::UDP && flow.frontend == (peer, port) && flow.client.1 == socket.local_port()
}

/// Whether the socket is connected to a ClusterIP that has a backend now.
fn is_served_now(maps: &Maps, socket: &Connected) -> io::Result<bool> {
    let key = FrontendKey::new(socket.peer, socket.port, Proto::UDP);
    if socket.port == Port::ZERO {
        return Ok(false);
    }
    let Some(value) = maps.frontends.lookup(bytes_of(&key))? else { return Ok(false) };
    let frontend: Frontend = pod_read_unaligned(&value);
    let count = if frontend.has(Frontend::LOCAL) { frontend.local_count } else { frontend.cluster_count };
    // A load balancer's address may be reachable without shunt.
    Ok(frontend.kind == FrontendKind::ClusterIp as u32 && frontend.has(Frontend::HAS_ENDPOINTS) && count > 0)
}
