//! The harness of the network suite and of the demo: a cluster made of network namespaces, with real sockets and the
//! real `shunt` in it.
//!
//! Nothing here knows how shunt works; it makes machines, pods, manifests and traffic, and says what it saw.

pub mod api_server;
pub mod bench;
pub mod demo;
pub mod manifest;
pub mod net;
pub mod packet;
mod pages;
mod spec;
pub mod traffic;
pub mod vm;
