//! What `shunt-bench` measures: the datapath's paths packet by packet, and connect() through a cluster of namespaces.
//!
//! Nothing here judges: figures stand beside PERFORMANCE.md's goals, and what is no multiple of something measured in
//! the same run moves with the machine.

pub mod asm;
pub mod connect;
pub mod paths;
pub mod xdp;
pub mod yardstick;
