//! Packets that are not plain: TCP and UDP behind IPv6 extension headers, fragments, SCTP, ICMP errors, and what else
//! `packet.rs` puts aside. They meet the same stages as any other packet, but are read into memory and rewritten from there by
//! helpers: slower, and nothing of it is on the way of a plain packet.

use aya_ebpf::programs::TcContext;
use proxy_common::{Counter, CtEntry, CtKey, FragmentKey, Half, Port, Proto, tcp};

use crate::{
    begin::Work,
    flow, fragment,
    headers::{self, Headers, load, part},
    held,
    icmp_error::{self, Quote},
    ingress::begins_anew,
    maps::ODD,
    new_flow,
    packet::{ETH_P_IP, Ipv6, Link, Tcp, Udp, ifindex, skb},
    rewrite::{Rewrite, rewrite_odd},
    source,
    verdict::{DropReason, Verdict},
    watch,
};

/// A packet that is not plain. Per CPU, used as `begin::Work` is; filled in anew by each [`read`].
#[repr(C)]
pub struct Odd {
    /// The tuple as the packet carries it, keyed for the hook it was read at.
    pub key: CtKey,
    pub headers: Headers,
    /// Of a fragment: which datagram's.
    fragment: FragmentKey,
    /// Not 0: a first fragment that ends inside its transport header.
    tiny: u32,
    /// With [`Step::End`].
    verdict: Verdict,
    pub tcp_flags: u32,
    /// 1 where the transport header, and so ports and checksum, is in this packet.
    pub has_transport: u32,
    /// Where `strip` puts a header together.
    pub ipv6: Ipv6,
    tcp: Tcp,
    udp: Udp,
    /// SCTP's common header.
    sctp: [u16; 6],
    /// What an ICMP message is about.
    pub quote: Quote,
    /// Both as one word, where they are written.
    pub ports: u32,
}

#[inline(always)]
pub fn odd() -> Option<&'static mut Odd> {
    // SAFETY: an element of a per-CPU array, used by nobody else meanwhile.
    ODD.get_ptr_mut(0).map(|odd| unsafe { &mut *odd })
}

/// What is left to do with a packet at a hook.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Step {
    /// Goes on as it is now.
    Pass,
    /// Belongs to no recorded flow; at ingress `work` has what a decision needs.
    New,
    /// An ICMP message that may be about a flow's packet: [`arrive`] sees to it.
    Message,
    /// Is dropped or was sent elsewhere: `odd.verdict`.
    End,
}

impl Odd {
    #[inline(always)]
    pub fn verdict(&self, step: Step) -> Verdict {
        match step {
            Step::New | Step::Pass | Step::Message => Verdict::NEXT,
            Step::End => self.verdict,
        }
    }

    /// The step that leads to this verdict.
    #[inline(always)]
    pub fn end(&mut self, verdict: Verdict) -> Step {
        if verdict.is_next() {
            return Step::Pass;
        }
        self.verdict = verdict;
        Step::End
    }
}

/// Reads a packet into `odd`. [`Step::New`]: it is to be looked up, which is not so for what is none of ours, and not
/// for the fragments that follow their first. Not a part of [`ingress`] and [`egress`], so that calls do not nest as
/// deep as the stack ends.
#[inline(always)]
pub fn arrive<L: Link>(ctx: &TcContext, odd: &mut Odd, half: Half) -> Step {
    match read::<L>(ctx, odd, half) {
        Step::New if odd.headers.part != part::WHOLE => fragment_of::<L>(ctx, odd),
        Step::Message => icmp_error::handle::<L>(ctx, odd),
        step => step,
    }
}

/// A subprogram: how a packet that is not plain was read need not be followed apart from here.
#[inline(never)]
fn read<L: Link>(ctx: &TcContext, odd: &mut Odd, half: Half) -> Step {
    let v4 = skb(ctx).protocol as u16 == ETH_P_IP;
    if !headers::read(ctx, L::HEADER as u32, v4, &mut odd.headers) {
        return Step::Pass;
    }
    let proto = odd.headers.proto as u8;
    odd.key = CtKey::new(odd.headers.src, Port::ZERO, odd.headers.dst, Port::ZERO, proto, half);
    odd.tcp_flags = 0;
    odd.has_transport = u32::from(odd.headers.part != part::LATER);
    match proto {
        Proto::TCP | Proto::UDP | Proto::SCTP => {}
        Proto::ICMP if v4 && odd.headers.part == part::WHOLE => return Step::Message,
        Proto::ICMPV6 if !v4 && odd.headers.part == part::WHOLE => return Step::Message,
        _ => return other(odd),
    }
    let whole = odd.has_transport == 0 || read_transport(ctx, odd);
    if odd.headers.part == part::WHOLE {
        return if whole { Step::New } else { Step::Pass };
    }
    odd.tiny = u32::from(!whole);
    odd.fragment = FragmentKey {
        src: odd.key.src,
        dst: odd.key.dst,
        id: odd.headers.id,
        proto: odd.key.proto,
        half: odd.key.half,
        reserved: 0,
    };
    Step::New
}

/// A fragment: its datagram's first is to be looked up, the others follow it.
#[inline(always)]
fn fragment_of<L: Link>(ctx: &TcContext, odd: &mut Odd) -> Step {
    let verdict = if odd.headers.part == part::LATER {
        fragment::later::<L>(ctx, &odd.fragment)
    } else if odd.tiny != 0 {
        fragment::tiny(&odd.fragment)
    } else {
        let waiting = fragment::first(&odd.fragment);
        if waiting == 0 {
            return Step::New;
        }
        match held::release::<L>(ctx, &odd.fragment, waiting) {
            Some(verdict) => verdict,
            None => return Step::New,
        }
    };
    odd.end(verdict)
}

/// Notes what became of a packet, for the fragments that follow it. To be called for everything that was looked up.
#[inline(always)]
pub fn settle<L: Link>(ctx: &TcContext, odd: &Odd, went: bool) {
    if odd.headers.part == part::FIRST {
        fragment::decided::<L>(ctx, &odd.fragment, went);
    }
}

/// Other protocols have no flows, but a ClusterIP refuses them. Their fragments pass.
#[inline(always)]
fn other(odd: &Odd) -> Step {
    let is_icmp = matches!(odd.key.proto, Proto::ICMP | Proto::ICMPV6);
    if is_icmp || odd.headers.part != part::WHOLE { Step::Pass } else { Step::New }
}

/// Ports and flags. False: cut short.
#[inline(always)]
fn read_transport(ctx: &TcContext, odd: &mut Odd) -> bool {
    let l4 = odd.headers.l4;
    if odd.key.proto == Proto::TCP {
        if !load(ctx, l4, &mut odd.tcp) {
            return false;
        }
        odd.tcp_flags = u32::from(odd.tcp.flags);
        odd.key.sport = Port::from_be(odd.tcp.sport);
        odd.key.dport = Port::from_be(odd.tcp.dport);
    } else if odd.key.proto == Proto::SCTP {
        if !load(ctx, l4, &mut odd.sctp) {
            return false;
        }
        odd.key.sport = Port::from_be(odd.sctp[0]);
        odd.key.dport = Port::from_be(odd.sctp[1]);
    } else {
        if !load(ctx, l4, &mut odd.udp) {
            return false;
        }
        odd.key.sport = Port::from_be(odd.udp.sport);
        odd.key.dport = Port::from_be(odd.udp.dport);
    }
    true
}

/// The ingress hook's part for what [`arrive`]d. A subprogram, likewise.
#[inline(never)]
pub fn ingress<L: Link>(ctx: &TcContext, odd: &mut Odd, work: &mut Work) -> Step {
    let tcp_flags = odd.tcp_flags as u8;
    if let Some(entry) = flow::lookup(&odd.key) {
        let anew = odd.key.proto == Proto::TCP && tcp::is_syn(tcp_flags) && begins_anew(&odd.key, entry);
        if !anew {
            if entry.has(CtEntry::REQUEST) {
                flow::touch(&odd.key, tcp_flags, entry);
            }
            return go_on::<L>(ctx, odd, entry);
        }
        flow::forget(&odd.key, entry);
    }
    if !new_flow::may_concern(&odd.key) {
        return Step::Pass;
    }
    work.request = odd.key;
    work.tcp_flags = odd.tcp_flags;
    Step::New
}

/// The egress hook's part, likewise.
#[inline(never)]
pub fn egress<L: Link>(ctx: &TcContext, odd: &mut Odd) -> Step {
    let Some(entry) = flow::lookup(&odd.key) else {
        return Step::New;
    };
    if entry.has(CtEntry::REPLY) {
        flow::touch(&odd.key, odd.tcp_flags as u8, entry);
    } else if entry.port == 0
        && let Err(reason) = source::complete(&odd.key, ifindex(ctx), entry)
    {
        return odd.end(reason.into());
    }
    go_on::<L>(ctx, odd, entry)
}

/// A packet of a recorded flow.
#[inline(always)]
fn go_on<L: Link>(ctx: &TcContext, odd: &mut Odd, entry: &CtEntry) -> Step {
    if entry.has(CtEntry::IDENTITY) {
        return Step::Pass;
    }
    watch::packet(ctx, entry);
    let to = Rewrite { addr: entry.addr, port: entry.port(), peer_port: entry.peer_port };
    match rewrite_odd::<L>(ctx, odd, &to) {
        Ok(()) => Step::Pass,
        Err(reason) => odd.end(reason.into()),
    }
}

/// Rewrites the packet that [`ingress`] read, when a new flow was decided about.
#[inline(never)]
pub fn translate<L: Link>(ctx: &TcContext, to: &Rewrite) -> Result<(), DropReason> {
    let odd = odd().ok_or(Counter::RewriteFailed)?;
    rewrite_odd::<L>(ctx, odd, to)
}
