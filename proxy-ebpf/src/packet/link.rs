//! Link-layer framing: with an Ethernet header or without.

/// Link-layer framing of a device: which of the two program variants this is.
pub trait Link {
    /// Bytes in front of the IP header.
    const HEADER: usize;
}

/// 14 bytes of Ethernet.
pub struct Ethernet;

/// Nothing: the packet begins with the IP header.
pub struct NoHeader;

impl Link for Ethernet {
    const HEADER: usize = 14;
}

impl Link for NoHeader {
    const HEADER: usize = 0;
}
