//! Attributes of nf_tables: one of several, and numbers in network order.

use crate::datapath::netlink::attributes;

/// The first attribute of this kind in `data`.
pub fn find(data: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(data).find(|attribute| attribute.0 == kind).map(|attribute| attribute.1)
}

pub fn be32(data: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(data.get(..4)?.try_into().ok()?))
}
