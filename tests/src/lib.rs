//! The harness of the network suite and of the demo: a cluster made of network namespaces, with real sockets and the
//! real `shunt` in it.
//!
//! Nothing here knows how shunt works; it makes machines, pods, manifests and traffic, and says what it saw.
//!
//! The modules of the feature `suites` (on by default) are those that the demo does not need: `cargo xtask demo` builds
//! without them and without the crates that they pull in.

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
