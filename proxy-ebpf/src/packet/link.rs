//! Link-layer framing: with an Ethernet header or without.

/// Link-layer framing of a device; each tc program exists once for each.
pub trait Link {
    /// Bytes in front of the IP header.
    const HEADER: usize;
}

/// A 14-byte Ethernet header.
pub struct Ethernet;

/// No header: the packet begins with the IP header.
pub struct NoHeader;

impl Link for Ethernet {
    const HEADER: usize = 14;
}

impl Link for NoHeader {
    const HEADER: usize = 0;
}
