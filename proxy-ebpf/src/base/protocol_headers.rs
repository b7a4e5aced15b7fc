//! Protocol headers as they are laid out in a packet, and the constants that go with them. Data only: `packet/` reads
//! and writes them.

/// Address families, as the kernel numbers them.
pub const AF_INET: u8 = 2;
pub const AF_INET6: u8 = 10;

/// `packed(2)`, because headers behind an Ethernet header are only 2-byte aligned: it makes every load defined
/// behaviour.
#[repr(C, packed(2))]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub proto: u8,
    pub check: u16,
    pub src: u32,
    pub dst: u32,
}

#[repr(C, packed(2))]
pub struct Ipv6 {
    pub version_class_flow: u32,
    pub payload_len: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub src: [u32; 4],
    pub dst: [u32; 4],
}

#[repr(C, packed(2))]
#[derive(Clone, Copy)]
pub struct Tcp {
    pub sport: u16,
    pub dport: u16,
    pub seq: u32,
    pub ack: u32,
    pub offset: u8,
    pub flags: u8,
    pub window: u16,
    pub check: u16,
    pub urgent: u16,
}

#[repr(C, packed(2))]
pub struct Udp {
    pub sport: u16,
    pub dport: u16,
    pub len: u16,
    pub check: u16,
}

#[repr(C, packed(2))]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub check: u16,
    pub rest: u32,
}

pub const ETH_P_IP: u16 = 0x0800_u16.to_be();

pub const ETH_P_IPV6: u16 = 0x86dd_u16.to_be();

/// The more-fragments flag and the fragment offset.
pub const FRAGMENT_MASK: u16 = 0x3fff_u16.to_be();

pub const FRAGMENT_OFFSET_MASK: u16 = 0x1fff_u16.to_be();
