//! Which Service to refuse when the store has no room for an entry.

use proxy_common::{FrontendKey, SetMember, SourceRange, map};

use super::{
    entries::{backend_keys, vips},
    installed::Installed,
    service_tables::ServiceTables,
    table::Record as _,
};
use crate::{maps::Op, model::ServiceKey};

impl ServiceTables {
    /// The Service that needs the entry of `op`.
    pub fn blame(&self, op: &Op) -> Option<ServiceKey> {
        let by_id = |id: u32| self.ids.key(id).map(|key| key.service.clone());
        let using = |key: FrontendKey| {
            let uses =
                |service: &&Installed| service.compiled.ports.iter().flat_map(backend_keys).any(|k| k == key);
            let users = self.services.values().filter(uses).map(|service| &service.compiled.key);
            // The last by name: retries make progress in a fixed order.
            users.max().cloned()
        };
        match op.map() {
            map::FRONTENDS => {
                let key = FrontendKey::from_bytes(op.key())?;
                let pinged = || {
                    let has = |service: &&Installed| vips(&service.compiled).any(|vip| vip == key.addr);
                    self.services.values().filter(has).map(|service| service.compiled.key.clone()).max()
                };
                self.claims.owner(&key).cloned().or_else(pinged)
            }
            map::SERVICE_META => by_id(u32::from_bytes(op.key())?),
            map::SET_MEMBERS => by_id(SetMember::from_bytes(op.key())?.service),
            map::SOURCE_RANGES => by_id(SourceRange::from_bytes(op.key())?.service_id()),
            map::BACKEND_ADDRS => using(FrontendKey::from_bytes(op.key())?),
            map::BACKEND_META => {
                let backend = self.tables.backends.get(&u32::from_bytes(op.key())?)?;
                using(FrontendKey::new(backend.addr, backend.port, backend.proto))
            }
            _ => None,
        }
    }
}
