//! Services: which frontend a destination is, whether it serves the client, and which backend it selects. Shared by the
//! packet hooks and the socket hooks; knows no packet and no flow.

pub mod affinity;
pub mod backend;
pub mod cluster_ip;
pub mod frontend;
pub mod prefilter;
pub mod select;
pub mod source_ranges;
