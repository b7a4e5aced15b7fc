//! The harness of the packet suite and of the bench: the real eBPF object in maps of its own, run packet by packet with
//! BPF_PROG_TEST_RUN.
//!
//! [`datapath`] loads it, [`world`] fills its maps, [`frame`] builds packets and their checksums from scratch, [`run`]
//! is the system call, [`extension`] puts IPv6 extension headers into them, [`fragment`] cuts them up, [`icmp`] has errors
//! about them, [`tap`] sees what a program sends by itself, [`events`] reads the ring buffer, [`model`] is what the
//! translation should do, in plain Rust, and [`parties`] who has which port and where answers belong. No program is attached to anything.

mod addresses;
pub mod datapath;
pub mod events;
pub mod extension;
pub mod fragment;
pub mod frame;
pub mod icmp;
pub mod model;
pub mod parties;
pub mod run;
pub mod tap;
pub mod world;

pub use datapath::{Datapath, Hook};
pub use frame::{Ip, Link, Packet, Transport};
pub use run::{Outcome, Way};
pub use tap::Tap;
