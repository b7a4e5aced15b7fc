//! Garbage collection of CONNTRACK: [`find_dead`] chooses the flows to delete, [`remove`] deletes them.
//!
//! The agent's conntrack-gc thread does both every few seconds. [`udp_flush`] moves UDP flows off removed endpoints
//! without waiting for that pass.

mod dump;
mod expiry;
mod timeouts;
pub mod udp_flush;

pub use self::{
    dump::{DeadFlow, Dump, dump, remove},
    expiry::{Clock, GcResult, find_dead},
};
