//! The demo: a two-node cluster on this machine with one real `shunt` per node. This process takes the roles of API
//! server, scheduler, kubelet and endpoint controller. Started by `shunt-demo` (and so by `cargo xtask demo`).
//!
//! shunt itself sees the same objects as in a real cluster: Services, EndpointSlices, Endpoints and Nodes.

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
