//! Connection tracking: CONNTRACK's entries from creation to removal, and the source ports of translated flows.
//! `proxy_common::conntrack` describes the four halves of a flow.

pub mod create;
pub mod entry;
pub mod follow;
pub mod half_open;
pub mod node_flow;
pub mod ports;
pub mod reuse;
pub mod snat;
pub mod source_addr;
