//! The harness of the network suite and of the demo: a cluster made of network namespaces, with real sockets and the
//! real `shunt` in it.
//!
//! The harness does not depend on how shunt works; it creates machines, pods, manifests and traffic, and reports
//! observations.
//!
//! The modules of the feature `suites` (on by default) are those that the demo does not need: `cargo xtask demo` builds
//! without them and without the crates that they depend on.

#[cfg(feature = "suites")]
pub mod api_server;
#[cfg(feature = "suites")]
pub mod bench;
pub mod demo;
pub mod manifest;
pub mod net;
#[cfg(feature = "suites")]
pub mod packet;
mod pages;
mod spec;
pub mod traffic;
#[cfg(feature = "suites")]
pub mod vm;
