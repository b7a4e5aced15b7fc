//! ICMP errors and redirects about packets of a flow (RFC 792, RFC 4443, RFC 4861).
//!
//! An error quotes the packet it is about as whoever reports it saw it, which is how this hook sent it out or the node's
//! stack had it. Turned around, the quote is the tuple of an answer to that packet, and what the half under that tuple
//! would write into an answer's destination (ingress) or source (egress) belongs into the quote's source or destination:
//! so the sender of the original finds its own socket in it. The error's own address follows where it is the one that
//! was translated; a router's stays.
//!
//! All checksums are mended in place, so that the sum over the packet stays what a device may have computed.

use core::mem::size_of;

use aya_ebpf::programs::TcContext;
use proxy_common::{Addr, Counter, CtEntry, CtKey, Half, Port, Proto, csum};

use crate::{
    count::count,
    flow,
    headers::{self, Headers, load, part, store},
    odd::{Odd, Step},
    packet::{Icmp, Link, quotes},
    rewrite::{ports_word, store_v4, store_v6},
    verdict::DropReason,
};

/// What a message is about. Part of [`Odd`].
#[repr(C)]
pub struct Quote {
    headers: Headers,
    /// The tuple of an answer to the quoted packet.
    answer: CtKey,
    /// The quoted packet's own, for redirects.
    itself: CtKey,
    icmp: Icmp,
    /// Source and destination port.
    ports: [u16; 2],
    /// What is written, one after the other.
    word: u32,
    words: [u32; 4],
    half_word: u16,
    option: [u8; 2],
}

const V4_REDIRECT: u8 = 5;
const V6_REDIRECT: u8 = 137;

/// What becomes of the ICMP message in `odd`; most are about nobody's flow and pass byte for byte.
#[inline(never)]
pub fn handle<L: Link>(ctx: &TcContext, odd: &mut Odd) -> Step {
    let v4 = odd.headers.src.is_v4();
    let message = odd.headers.l4;
    let quote = &mut odd.quote;
    if !load(ctx, message, &mut quote.icmp) || !quotes(quote.icmp.kind, v4) {
        return Step::Pass;
    }
    let is_redirect = quote.icmp.kind == if v4 { V4_REDIRECT } else { V6_REDIRECT };
    let mut at = message + size_of::<Icmp>() as u32;
    if is_redirect && !v4 {
        at = redirected(ctx, message, quote);
    }
    if !read_quote(ctx, at, v4, quote, odd.key.half == Half::Ingress as u8) {
        return Step::Pass;
    }
    if is_redirect {
        if is_translated(&quote.answer) || is_translated(&quote.itself) {
            return odd.end(Counter::RedirectDropped.into());
        }
        return Step::Pass;
    }
    let Some(entry) = flow::lookup(&quote.answer) else {
        return Step::Pass;
    };
    // A masquerade half without a port has sent nothing out yet that an error could be about.
    if entry.has(CtEntry::IDENTITY) || entry.port == 0 {
        return Step::Pass;
    }
    match translate::<L>(ctx, odd, entry) {
        Ok(()) => {
            count(Counter::IcmpErrorTranslated);
            Step::Pass
        }
        Err(reason) => odd.end(reason.into()),
    }
}

/// Whether packets with this tuple are of a flow that differs on both sides of the node.
#[inline(always)]
fn is_translated(key: &CtKey) -> bool {
    flow::lookup(key).is_some_and(|entry| !entry.has(CtEntry::IDENTITY))
}

/// Where the packet in an IPv6 redirect's Redirected Header option begins (RFC 4861, 4.5 and 4.6.3): behind at most two
/// others; 0 where there is none.
#[inline(always)]
fn redirected(ctx: &TcContext, message: u32, quote: &mut Quote) -> u32 {
    const REDIRECTED_HEADER: u8 = 4;
    // Behind target and destination address.
    let mut at = message + 40;
    let mut i = 0;
    while i < 3 {
        if !load(ctx, at, &mut quote.option) || quote.option[1] == 0 {
            return 0;
        }
        if quote.option[0] == REDIRECTED_HEADER {
            return at + 8;
        }
        at += u32::from(quote.option[1]) * 8;
        i += 1;
    }
    0
}

/// Reads the packet quoted at `at`. False: cut short before its ports, or of a protocol without.
#[inline(always)]
fn read_quote(ctx: &TcContext, at: u32, v4: bool, quote: &mut Quote, ingress: bool) -> bool {
    if at == 0 || !headers::read(ctx, at, v4, &mut quote.headers) || quote.headers.part == part::LATER {
        return false;
    }
    let proto = quote.headers.proto as u8;
    if !matches!(proto, Proto::TCP | Proto::UDP | Proto::SCTP)
        || !load(ctx, quote.headers.l4, &mut quote.ports)
    {
        return false;
    }
    let half = if ingress { Half::Ingress } else { Half::Egress };
    let (src, dst) = (quote.headers.src, quote.headers.dst);
    let (sport, dport) = (Port::from_be(quote.ports[0]), Port::from_be(quote.ports[1]));
    quote.answer = CtKey::new(dst, dport, src, sport, proto, half);
    quote.itself = CtKey::new(src, sport, dst, dport, proto, half);
    true
}

/// Writes what `entry` says into the quote, and into the message's own header where it names the same address.
#[inline(always)]
fn translate<L: Link>(ctx: &TcContext, odd: &mut Odd, entry: &CtEntry) -> Result<(), DropReason> {
    let ingress = odd.key.half == Half::Ingress as u8;
    let quote = &mut odd.quote;
    let old = if ingress { quote.headers.src } else { quote.headers.dst };
    let (port, peer) = (entry.port(), entry.peer_port);
    let (sport, dport) = if ingress { (port, peer) } else { (peer, port) };
    // What the checksums of the transport header and of the message have to make up for.
    let transport_diff = write_ports(ctx, quote, sport, dport)?;
    let addr_diff = write_addr(ctx, quote, ingress, &old, &entry.addr)?;
    let mut diff = csum::add(transport_diff, addr_diff);
    if old.is_v4() {
        diff = csum::add(diff, mend(ctx, quote, quote.headers.ip + 10, addr_diff, false)?);
    }
    let check = match quote.answer.proto {
        Proto::TCP => 16,
        Proto::UDP => 6,
        // SCTP's knows neither addresses nor, since they stay, ports.
        _ => 0,
    };
    let at = quote.headers.l4 + check;
    // Only the ports are sure to be quoted.
    if check != 0 && at + 2 <= odd.headers.end {
        let is_udp = quote.answer.proto == Proto::UDP;
        diff = csum::add(diff, mend(ctx, quote, at, csum::add(transport_diff, addr_diff), is_udp)?);
    }
    let outer = if ingress { odd.headers.dst } else { odd.headers.src };
    if outer.is(&old) {
        if old.is_v4() {
            store_v4::<L>(ctx, ingress, old.v4_be(), entry.addr.v4_be())?;
        } else {
            // ICMPv6 sums up a pseudo-header too.
            diff = csum::add(diff, store_v6::<L>(ctx, ingress, &old, &entry.addr)?);
        }
    }
    mend(ctx, quote, odd.headers.l4 + 2, diff, false)?;
    Ok(())
}

#[inline(always)]
fn write_ports(ctx: &TcContext, quote: &mut Quote, sport: Port, dport: Port) -> Result<u32, DropReason> {
    let old = ports_word(Port::from_be(quote.ports[0]), Port::from_be(quote.ports[1]));
    quote.word = ports_word(sport, dport);
    written(store(ctx, quote.headers.l4, &quote.word))?;
    Ok(csum::diff(old, quote.word))
}

#[inline(always)]
fn write_addr(
    ctx: &TcContext,
    quote: &mut Quote,
    source: bool,
    old: &Addr,
    new: &Addr,
) -> Result<u32, DropReason> {
    if old.is_v4() {
        quote.word = new.v4_be();
        written(store(ctx, quote.headers.ip + if source { 12 } else { 16 }, &quote.word))?;
        Ok(csum::diff(old.v4_be(), new.v4_be()))
    } else {
        quote.words = new.words();
        written(store(ctx, quote.headers.ip + if source { 8 } else { 24 }, &quote.words))?;
        Ok(csum::diff4(old.words(), new.words()))
    }
}

/// Applies a difference to the checksum at this offset; returns what that adds to the sum around it. One that may be
/// absent (`optional`: UDP's) and is zero stays zero.
#[inline(always)]
fn mend(ctx: &TcContext, quote: &mut Quote, at: u32, diff: u32, optional: bool) -> Result<u32, DropReason> {
    written(load(ctx, at, &mut quote.half_word))?;
    let old = quote.half_word;
    if optional && old == 0 {
        return Ok(0);
    }
    quote.half_word = csum::apply(old, diff);
    if optional && quote.half_word == 0 {
        quote.half_word = 0xffff;
    }
    written(store(ctx, at, &quote.half_word))?;
    Ok(csum::diff(u32::from(old), u32::from(quote.half_word)))
}

#[inline(always)]
fn written(done: bool) -> Result<(), DropReason> {
    if done { Ok(()) } else { Err(Counter::RewriteFailed) }
}
