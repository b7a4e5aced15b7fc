//! The demo: a two-node cluster on this machine, one real `shunt` per node, and this process in the parts of API
//! server, scheduler, kubelet and endpoint controller. Called by `shunt-demo` (and so by `cargo xtask demo`).
//!
//! shunt itself sees what it would see of a real cluster: Services, EndpointSlices, Endpoints and Nodes.

pub mod allocate;
pub mod control;
pub mod endpoints;
pub mod entrances;
pub mod guide;
pub mod interrupt;
pub mod objects;
pub mod stage;
pub mod step;
pub mod steps;
pub mod walk;
