//! Per-CPU scratch memory: what does not fit on the 512-byte stack, and what the verifier must not track through branches.
//! Plain data that knows no stage; `maps.rs` holds one instance of each per CPU.
//!
//! Both tc hooks and XDP run with softirqs disabled, so one CPU runs one of these programs at a time and an instance has
//! one user. Each stage fills in what it uses: nothing in here survives from packet to packet.

use core::mem::size_of;

use aya_ebpf::bindings::bpf_fib_lookup as FibParams;
use proxy_common::{Addr, Backend, CtEntry, CtKey, FragmentKey, Port, tcp::Tracked};

use crate::base::{
    protocol_headers::{Icmp, Ipv4, Ipv6, Tcp, Udp},
    verdict::Verdict,
};

/// The destination of a new flow.
#[repr(C)]
pub struct Target {
    pub addr: Addr,
    pub port: Port,
    pub reserved: u16,
    /// 0 for a direct flow to a backend's own address.
    pub service: u32,
    pub backend: u32,
    /// Non-zero: the flow's source is translated, by the first egress hook.
    pub masquerade: u32,
}

/// A backend and its id.
#[repr(C)]
pub struct SelectedBackend {
    pub backend: Backend,
    pub id: u32,
}

impl SelectedBackend {
    /// Initial value, to be overwritten.
    pub const NONE: Self = Self {
        backend: Backend { addr: Addr::UNSPECIFIED_V6, port: Port::ZERO, proto: 0, flags: 0, reserved: 0 },
        id: 0,
    };
}

/// What a half writes into packets. On ingress: destination address and port, and the source port. On egress: source
/// address and port, and the destination port.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rewrite {
    pub addr: Addr,
    pub port: Port,
    pub peer_port: Port,
}

/// What the stages know about one packet and the flow it belongs to or creates.
#[repr(C)]
pub struct FlowContext {
    pub entry: CtEntry,
    pub pending: CtEntry,
    pub request: CtKey,
    pub reply: CtKey,
    pub masquerade: CtKey,
    pub target: Target,
    pub selected: SelectedBackend,
    /// What packets of the flow are rewritten to at ingress, once it is recorded.
    pub rewrite: Rewrite,
    pub tcp_flags: u32,
    /// See `parse::tcp_end`.
    pub tcp_end: u32,
    /// Non-zero: the packet is in [`SlowPacket`].
    pub is_slow: u32,
    /// The device that the packet arrived on.
    pub ifindex: u32,
    /// The same, if replies are to leave by it; else 0.
    pub uplink: u32,
    /// Why the packet is rejected or dropped: a `DropReason` by number.
    pub reason: u32,
    /// `CtEntry::XDP` if XDP serves the flow, else 0.
    pub xdp_flag: u32,
    /// Non-zero: there is more to note of the packet, which has the key `reply`, than that it came; XDP only.
    pub is_noted: u32,
    /// Non-zero: another CPU created the flow first.
    pub lost_race: u32,
    /// Input and output of bpf_fib_lookup; XDP only.
    pub fib: FibLookup,
}

/// Keys for removing a flow: they do not fit on the stack below the callers' frames.
#[repr(C)]
pub struct TeardownKeys {
    pub reply: CtKey,
    pub masquerade: CtKey,
    pub back: CtKey,
}

/// What `ports::find_source` looks for: a free port in `reply`, for `entry`.
#[repr(C)]
pub struct SourceSearch {
    pub reply: CtKey,
    pub entry: CtEntry,
    /// Memory for a key.
    pub masquerade: CtKey,
}

/// What `conntrack/follow.rs` and `reuse.rs` look at: a half of a flow by its key, and a segment of it.
#[repr(C)]
pub struct Followed {
    pub key: CtKey,
    /// The key of the other half.
    pub peer: CtKey,
    pub header: Tcp,
    /// The flow before the segment, and after it.
    pub before: Tracked,
    pub flow: Tracked,
    /// Offset of the header.
    pub l4: u32,
    /// See `parse::tcp_end`.
    pub end: u32,
    /// The backend that the half names.
    pub backend: u32,
}

/// A part of a packet, whose checksum is being computed.
#[repr(C)]
pub struct ChecksumBlock {
    pub words: [u64; 8],
}

/// An element of HALF_OPEN: a flow by the key of its request half and its creation time.
#[repr(C)]
pub struct HalfOpenSlot {
    pub key: CtKey,
    pub created: u32,
    pub reserved: u32,
    /// In element 0, which holds no flow: the position in the ring.
    pub turn: u64,
}

/// Which part of a datagram a packet is.
pub mod fragment_part {
    pub const WHOLE: u32 = 0;
    /// The first fragment, which has the ports.
    pub const FIRST: u32 = 1;
    pub const LATER: u32 = 2;
}

/// What the IP headers of a packet contain.
#[repr(C)]
pub struct IpHeaders {
    pub src: Addr,
    pub dst: Addr,
    /// Offset of the IP header.
    pub ip: u32,
    /// Offset of what follows all IP headers.
    pub l4: u32,
    /// Offset of the end of the packet, by the length in its header.
    pub end: u32,
    /// Protocol number of what follows all IP headers.
    pub proto: u32,
    /// A constant of [`fragment_part`].
    pub part: u32,
    /// A fragment's identification, in network order.
    pub id: u32,
    /// Offset of a fragment in its datagram, in bytes.
    pub offset: u32,
    /// Non-zero: more fragments follow.
    pub more: u32,
    pub v4: Ipv4,
    pub v6: Ipv6,
    pub extension: [u8; 8],
}

/// The packet that an ICMP message quotes.
#[repr(C)]
pub struct QuotedPacket {
    pub headers: IpHeaders,
    /// The tuple of a reply to the quoted packet.
    pub reply_tuple: CtKey,
    /// The tuple of the quoted packet itself, for redirects.
    pub tuple: CtKey,
    pub icmp: Icmp,
    /// Source and destination port.
    pub ports: [u16; 2],
    /// Buffers for what is written.
    pub word: u32,
    pub words: [u32; 4],
    pub half_word: u16,
    pub option: [u8; 2],
}

/// A packet on the slow path, as `slow_path/read.rs` read it.
#[repr(C)]
pub struct SlowPacket {
    /// The tuple of the packet, keyed for the hook.
    pub key: CtKey,
    pub headers: IpHeaders,
    /// The datagram that a fragment belongs to.
    pub fragment: FragmentKey,
    /// Non-zero: a first fragment that ends inside its transport header.
    pub tiny: u32,
    /// The verdict that goes with `SlowStep::Done`.
    pub verdict: Verdict,
    pub tcp_flags: u32,
    pub tcp_end: u32,
    /// 1 if the packet contains the transport header, and so ports and checksum.
    pub has_transport: u32,
    /// Buffer for the header that `ext_headers::remove` writes.
    pub ipv6: Ipv6,
    pub tcp: Tcp,
    pub udp: Udp,
    /// SCTP's common header.
    pub sctp: [u16; 6],
    /// The packet that an ICMP message quotes.
    pub quote: QuotedPacket,
    /// Buffer for both ports as one word.
    pub ports: u32,
}

/// `struct bpf_fib_lookup`, with its unions as XDP uses them.
#[repr(C)]
pub struct FibLookup {
    pub family: u8,
    pub proto: u8,
    pub sport: u16,
    pub dport: u16,
    /// Length of the IP packet, which the lookup compares with the route's MTU.
    pub len: u16,
    /// Input: the device that the packet arrived on. Output: the device it leaves by.
    pub ifindex: u32,
    /// Traffic class (IPv4) or flow information (IPv6).
    pub class: u32,
    pub src: [u32; 4],
    pub dst: [u32; 4],
    pub table: u32,
    pub from_mac: Mac,
    pub to_mac: Mac,
}

pub type Mac = [u16; 3];

const _: () = assert!(size_of::<FibLookup>() == size_of::<FibParams>());

impl FibLookup {
    /// Sets the destination of the lookup.
    #[inline(always)]
    pub fn set_destination(&mut self, dst: &Addr, port: Port, v4: bool) {
        self.dport = port.be();
        if v4 {
            self.dst[0] = dst.v4_be();
        } else {
            self.dst = dst.words();
        }
    }

    /// The mark to look up with (6.10): it lies where the lookup puts the addresses of the next hop.
    #[inline(always)]
    pub fn set_mark(&mut self, mark: u32) {
        let [low, high] = [mark as u16, (mark >> 16) as u16];
        let halves = if cfg!(target_endian = "little") { [low, high] } else { [high, low] };
        (self.from_mac[0], self.from_mac[1]) = (halves[0], halves[1]);
    }
}
