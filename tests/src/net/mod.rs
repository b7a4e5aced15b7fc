//! The cluster: an underlay, nodes, pods and an outside client, each in a network namespace of this machine.

pub mod cgroup;
pub mod checksums;
pub mod cluster;
pub mod cni;
pub mod container;
#[cfg(feature = "suites")]
pub mod crowd;
pub mod foreign;
pub mod foreign_traffic;
pub mod hop;
pub mod monitor;
pub mod netns;
pub mod node;
pub mod offload;
pub mod place;
pub mod plan;
pub mod pod;
pub mod referee;
pub mod repository;
pub mod scratch;
pub mod shunt;
pub mod tun;
mod wiring;
pub mod xdp_mode;

pub use cluster::Cluster;
pub use container::{Container, Privileges};
#[cfg(feature = "suites")]
pub use crowd::Crowd;
pub use foreign_traffic::ForeignTraffic;
pub use hop::Toward;
pub use monitor::Monitor;
pub use netns::Netns;
pub use node::Node;
pub use place::Place;
pub use plan::{Between, Plan, PodNet};
pub use pod::Pod;
pub use referee::Proxy;
pub use shunt::Shunt;
pub use xdp_mode::Lane;
