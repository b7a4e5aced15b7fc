//! What changes of Services mean for flows and clients that exist already; the agent acts on it after the write.

use std::collections::HashSet;

use proxy_common::{FrontendKey, Port};

use super::{backends::Backends, installed::Installed};
use crate::{compile::CompiledPort, model::Protocol};

/// Since they were last taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// UDP: service and backend ids that no longer belong together.
    pub removed_endpoints: Vec<(u32, u32)>,
    /// A backend left a set that clients have affinity to.
    pub affinity_lost: bool,
    /// A UDP port has a backend that had none.
    pub udp_served: bool,
}

impl Changes {
    /// A Service is about to be replaced by `new`.
    pub(super) fn note_served(&mut self, old: Option<&Installed>, new: &Installed) {
        self.udp_served |= serves_more(old, new);
    }

    /// Notes the endpoints of a UDP port that no longer serve it; `now` is the port's new state.
    pub(super) fn note_removed(
        &mut self,
        id: u32,
        old: &CompiledPort,
        now: Option<&CompiledPort>,
        backends: &Backends,
    ) {
        let serving: HashSet<_> = now.iter().flat_map(|port| &port.serving).collect();
        let gone = old.serving.iter().filter(|endpoint| !serving.contains(endpoint));
        let gone = gone.filter_map(|(ip, port)| {
            let key = FrontendKey::new((*ip).into(), Port::new(*port), old.protocol.number());
            Some((id, backends.id(&key)?))
        });
        self.removed_endpoints.extend(gone);
    }
}

/// Whether a UDP port of `new` has a backend in a set that was empty, or through a new frontend.
fn serves_more(old: Option<&Installed>, new: &Installed) -> bool {
    let udp = |port: &&CompiledPort| port.protocol == Protocol::Udp && !port.backends.is_empty();
    new.compiled.ports.iter().zip(&new.ids).filter(|(port, _)| udp(port)).any(|(port, id)| {
        let old = old.and_then(|old| old.port(*id));
        old.is_none_or(|old| {
            old.cluster.is_empty() && !port.cluster.is_empty()
                || old.local.is_empty() && !port.local.is_empty()
                || old.frontends != port.frontends
        })
    })
}
