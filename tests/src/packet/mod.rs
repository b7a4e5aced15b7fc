//! The harness of the packet suite and of the bench: the real eBPF object with maps of its own, run packet by packet
//! with BPF_PROG_TEST_RUN.
//!
//! [`datapath`] loads the object, [`world`] fills its maps, [`frame`] builds packets and their checksums from scratch,
//! and [`run`] makes the system call. [`extension`] inserts IPv6 extension headers, [`fragment`] splits packets into
//! fragments, [`icmp`] builds errors about them. [`tap`] captures packets that a program sends itself, [`events`] reads
//! the ring buffer. [`model`] is the expected translation in plain Rust, and [`parties`] models port ownership and the
//! owner of each reply. No program is attached to a device.

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
