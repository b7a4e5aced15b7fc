//! Packets: reading and writing bytes. No map but the scratch memory, no Service, no flow.

pub mod access;
pub mod checksum;
pub mod ext_headers;
pub mod link;
pub mod parse;
pub mod rewrite;
