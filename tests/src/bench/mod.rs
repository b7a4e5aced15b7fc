//! The measurements of `shunt-bench`: the datapath's paths packet by packet, and connect() through a cluster of
//! namespaces.
//!
//! The bench only reports: it prints figures next to PERFORMANCE.md's goals. A figure that is not a multiple of another
//! one from the same run depends on the machine.

pub mod asm;
pub mod connect;
pub mod paths;
pub mod xdp;
pub mod yardstick;
