//! Per-CPU scratch memory: what does not fit on the 512-byte stack, and what the verifier must not track through branches.
//! Plain data that knows no stage; `maps.rs` holds one instance of each per CPU.
//!
//! Both tc hooks and XDP run with softirqs disabled, so one CPU runs one of these programs at a time and an instance has
//! one user. Each stage fills in what it uses: nothing in here survives from packet to packet.

use core::mem::size_of;

use aya_ebpf::bindings::bpf_fib_lookup as FibParams;
use proxy_common::{Addr, Backend, CtEntry, CtKey, FragmentKey, Port};

use crate::base::{
    headers::{Icmp, Ipv4, Ipv6, Tcp, Udp},
    verdict::Verdict,
};

/// What a new flow is sent to.
#[repr(C)]
pub struct Target {
    pub addr: Addr,
    pub port: Port,
    pub reserved: u16,
    /// 0 for a direct flow to a backend's own address.
    pub service: u32,
    pub backend: u32,
    /// Not 0: its source is to be translated by the first egress hook.
    pub masquerade: u32,
}

/// A backend and its id.
#[repr(C)]
pub struct SelectedBackend {
    pub backend: Backend,
    pub id: u32,
}

impl SelectedBackend {
    /// To be filled in.
    pub const NONE: Self = Self {
        backend: Backend { addr: Addr::UNSPECIFIED_V6, port: Port::ZERO, proto: 0, flags: 0, reserved: 0 },
        id: 0,
    };
}

/// What a half writes: at ingress destination address and port, and the source port; at egress source address
/// and port, and the destination port.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rewrite {
    pub addr: Addr,
    pub port: Port,
    pub peer_port: Port,
}

/// Where a flow is put together: too much for the 512 bytes of stack. Per CPU; no two programs that use it run
/// on one CPU at the same time, because both hooks run with softirqs off.
#[repr(C)]
pub struct FlowContext {
    pub entry: CtEntry,
    pub pending: CtEntry,
    pub request: CtKey,
    pub reply: CtKey,
    pub masquerade: CtKey,
    pub target: Target,
    pub selected: SelectedBackend,
    /// What `begin` decided.
    pub rewrite: Rewrite,
    pub tcp_flags: u32,
    /// Not 0: the packet is not plain, and `packet.rs` has read it.
    pub is_slow: u32,
    /// The device the packet came in by.
    pub ifindex: u32,
    /// Why the packet is refused or dropped: a [`DropReason`] by number.
    pub reason: u32,
    /// `CtEntry::XDP` where the flow is the XDP lane's.
    pub xdp_flag: u32,
    /// Not 0: another CPU had begun the flow.
    pub lost_race: u32,
    /// The XDP lane's question to the routing table.
    pub fib: FibLookup,
}

/// Keys that are put together to remove a flow: too much for the stack below the callers' frames. Per CPU, used
/// as `begin::FlowContext` is.
#[repr(C)]
pub struct TeardownKeys {
    pub reply: CtKey,
    pub masquerade: CtKey,
    pub back: CtKey,
}

/// A slot in the ring: a flow by the key of its request half and the time it began.
#[repr(C)]
pub struct HalfOpenSlot {
    pub key: CtKey,
    pub created: u32,
    pub reserved: u32,
    /// In the first element, which is no slot: the ring's turn.
    pub turn: u64,
}

/// Which part of a datagram a packet is.
pub mod fragment_part {
    pub const WHOLE: u32 = 0;
    /// The first fragment, which has the ports.
    pub const FIRST: u32 = 1;
    pub const LATER: u32 = 2;
}

/// What the IP headers of a packet say.
#[repr(C)]
pub struct IpHeaders {
    pub src: Addr,
    pub dst: Addr,
    /// Offset of the IP header.
    pub ip: u32,
    /// Offset of what stands behind all IP headers.
    pub l4: u32,
    /// Offset of the packet's end, as its header tells its length.
    pub end: u32,
    /// Protocol number of what stands there.
    pub proto: u32,
    /// One of [`fragment_part`].
    pub part: u32,
    /// A fragment's identification, as it lies in the packet.
    pub id: u32,
    /// Where in its datagram a fragment belongs, in bytes.
    pub offset: u32,
    /// More fragments follow.
    pub more: u32,
    pub v4: Ipv4,
    pub v6: Ipv6,
    pub extension: [u8; 8],
}

/// What a message is about. Part of [`SlowPacket`].
#[repr(C)]
pub struct QuotedPacket {
    pub headers: IpHeaders,
    /// The tuple of an answer to the quoted packet.
    pub reply_tuple: CtKey,
    /// The quoted packet's own, for redirects.
    pub tuple: CtKey,
    pub icmp: Icmp,
    /// Source and destination port.
    pub ports: [u16; 2],
    /// What is written, one after the other.
    pub word: u32,
    pub words: [u32; 4],
    pub half_word: u16,
    pub option: [u8; 2],
}

/// A packet that is not plain. Per CPU, used as `begin::FlowContext` is; filled in anew by each [`read`].
#[repr(C)]
pub struct SlowPacket {
    /// The tuple as the packet carries it, keyed for the hook it was read at.
    pub key: CtKey,
    pub headers: IpHeaders,
    /// Of a fragment: which datagram's.
    pub fragment: FragmentKey,
    /// Not 0: a first fragment that ends inside its transport header.
    pub tiny: u32,
    /// With [`SlowStep::Done`].
    pub verdict: Verdict,
    pub tcp_flags: u32,
    /// 1 where the transport header, and so ports and checksum, is in this packet.
    pub has_transport: u32,
    /// Where `strip` puts a header together.
    pub ipv6: Ipv6,
    pub tcp: Tcp,
    pub udp: Udp,
    /// SCTP's common header.
    pub sctp: [u16; 6],
    /// What an ICMP message is about.
    pub quote: QuotedPacket,
    /// Both as one word, where they are written.
    pub ports: u32,
}

/// `struct bpf_fib_lookup`, its unions as XDP uses them.
#[repr(C)]
pub struct FibLookup {
    pub family: u8,
    pub proto: u8,
    pub sport: u16,
    pub dport: u16,
    /// Of the IP packet: the lookup compares it with the route's MTU.
    pub len: u16,
    /// In: the device the packet came in by. Out: the one it leaves by.
    pub ifindex: u32,
    /// Traffic class (IPv4) or flow information.
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
    /// The destination to look up.
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
