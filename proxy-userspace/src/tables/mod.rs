//! Exactly what the maps must hold, and how they get there.
//!
//! [`ServiceTables`] gives compiled Services their ids and slot ranges and fills [`Tables`]; `Tables` turns what differs
//! from the store into ordered ops. Start, change, restart and repair are this same diff. The controller drives both;
//! nothing here knows Kubernetes or the kernel.

mod backends;
mod blame;
mod changes;
mod claims;
mod client_rules;
mod desired;
mod entries;
mod full;
mod ids;
mod installed;
mod pings;
mod port_bits;
mod restore;
mod room;
mod service_ids;
mod service_tables;
mod slot_sets;
mod slots;
mod table;

pub use self::{
    changes::Changes,
    desired::{NodeName, Tables},
    full::Full,
    service_tables::{InUse, ServiceTables},
    slots::Range,
    table::{Record, Table},
};
