//! ICMP errors and redirects about packets of a flow (RFC 792, RFC 4443, RFC 4861).
//!
//! An error quotes the packet it is about as its reporter saw it, which is how this hook sent it out or the node's stack had
//! it. With source and destination exchanged, the quote is the tuple of a reply to that packet. What the half under that tuple
//! writes into a reply's destination (ingress) or source (egress) belongs into the quote's source or destination, so that the
//! original sender finds its own socket in it. The error's own address is translated where it is the same address; a router's
//! stays.
//!
//! All checksums are updated in place, so that the sum over the packet stays what a device may have computed.

use core::mem::size_of;

use aya_ebpf::programs::TcContext;
use proxy_common::{Addr, Counter, CtEntry, CtKey, Half, Port, Proto, csum};

use crate::{
    base::{
        protocol_headers::Icmp,
        scratch::{QuotedPacket, SlowPacket, fragment_part},
        verdict::DropReason,
    },
    conntrack::entry,
    observe::counters::count,
    packet::{
        access::{load, store},
        ext_headers,
        link::Link,
        parse::quotes_packet,
        rewrite::{ports_word, write_v4_addr, write_v6_addr},
    },
    slow_path::step::SlowStep,
};

const V4_REDIRECT: u8 = 5;

const V6_REDIRECT: u8 = 137;

/// Handles the ICMP message in `packet`. Most are not about a flow and pass unchanged.
#[inline(never)]
pub fn handle<L: Link>(ctx: &TcContext, packet: &mut SlowPacket) -> SlowStep {
    let v4 = packet.headers.src.is_v4();
    let message = packet.headers.l4;
    let quote = &mut packet.quote;
    if !load(ctx, message, &mut quote.icmp) || !quotes_packet(quote.icmp.kind, v4) {
        return SlowStep::Pass;
    }
    let is_redirect = quote.icmp.kind == if v4 { V4_REDIRECT } else { V6_REDIRECT };
    let mut at = message + size_of::<Icmp>() as u32;
    if is_redirect && !v4 {
        at = redirected_packet(ctx, message, quote);
    }
    if !read_quote(ctx, at, v4, quote, packet.key.half == Half::Ingress as u8) {
        return SlowStep::Pass;
    }
    if is_redirect {
        if is_translated(&quote.reply_tuple) || is_translated(&quote.tuple) {
            return packet.done(Counter::RedirectDropped.into());
        }
        return SlowStep::Pass;
    }
    let Some(entry) = entry::lookup(&quote.reply_tuple) else {
        return SlowStep::Pass;
    };
    // A masquerade half without a port has not sent any packet that an error could be about.
    if entry.has(CtEntry::IDENTITY) || entry.port == 0 {
        return SlowStep::Pass;
    }
    match translate::<L>(ctx, packet, entry) {
        Ok(()) => {
            count(Counter::IcmpErrorTranslated);
            SlowStep::Pass
        }
        Err(reason) => packet.done(reason.into()),
    }
}

/// Whether packets with this tuple belong to a flow that is translated.
#[inline(always)]
fn is_translated(key: &CtKey) -> bool {
    entry::lookup(key).is_some_and(|entry| !entry.has(CtEntry::IDENTITY))
}

/// Offset of the packet in an IPv6 redirect's Redirected Header option (RFC 4861, 4.5 and 4.6.3), behind at most two
/// other options; 0 if there is none.
#[inline(always)]
fn redirected_packet(ctx: &TcContext, message: u32, quote: &mut QuotedPacket) -> u32 {
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

/// Reads the packet quoted at `at`. False: truncated before its ports, or of a protocol without ports.
#[inline(always)]
fn read_quote(ctx: &TcContext, at: u32, v4: bool, quote: &mut QuotedPacket, ingress: bool) -> bool {
    if at == 0
        || !ext_headers::read(ctx, at, v4, &mut quote.headers)
        || quote.headers.part == fragment_part::LATER
    {
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
    quote.reply_tuple = CtKey::new(dst, dport, src, sport, proto, half);
    quote.tuple = CtKey::new(src, sport, dst, dport, proto, half);
    true
}

/// Applies `entry` to the quote, and to the message's own header if that has the same address.
#[inline(always)]
fn translate<L: Link>(ctx: &TcContext, packet: &mut SlowPacket, entry: &CtEntry) -> Result<(), DropReason> {
    let ingress = packet.key.half == Half::Ingress as u8;
    let quote = &mut packet.quote;
    let old = if ingress { quote.headers.src } else { quote.headers.dst };
    let (port, peer) = (entry.port(), entry.peer_port);
    let (sport, dport) = if ingress { (port, peer) } else { (peer, port) };
    // The changes that the checksums of the quoted transport header and of the message have to include.
    let transport_diff = write_ports(ctx, quote, sport, dport)?;
    let addr_diff = write_addr(ctx, quote, ingress, &old, &entry.addr)?;
    let mut diff = csum::add(transport_diff, addr_diff);
    if old.is_v4() {
        diff = csum::add(diff, update_checksum(ctx, quote, quote.headers.ip + 10, addr_diff, false)?);
    }
    let check = match quote.reply_tuple.proto {
        Proto::TCP => 16,
        Proto::UDP => 6,
        // SCTP's checksum covers neither addresses nor, because they stay, ports.
        _ => 0,
    };
    let at = quote.headers.l4 + check;
    // Only the ports are guaranteed to be quoted.
    if check != 0 && at + 2 <= packet.headers.end {
        let is_udp = quote.reply_tuple.proto == Proto::UDP;
        diff =
            csum::add(diff, update_checksum(ctx, quote, at, csum::add(transport_diff, addr_diff), is_udp)?);
    }
    let outer = if ingress { packet.headers.dst } else { packet.headers.src };
    if outer.is(&old) {
        if old.is_v4() {
            write_v4_addr::<L>(ctx, ingress, old.v4_be(), entry.addr.v4_be())?;
        } else {
            // ICMPv6's checksum includes a pseudo-header.
            diff = csum::add(diff, write_v6_addr::<L>(ctx, ingress, &old, &entry.addr)?);
        }
    }
    update_checksum(ctx, quote, packet.headers.l4 + 2, diff, false)?;
    Ok(())
}

#[inline(always)]
fn write_ports(
    ctx: &TcContext,
    quote: &mut QuotedPacket,
    sport: Port,
    dport: Port,
) -> Result<u32, DropReason> {
    let old = ports_word(Port::from_be(quote.ports[0]), Port::from_be(quote.ports[1]));
    quote.word = ports_word(sport, dport);
    written(store(ctx, quote.headers.l4, &quote.word))?;
    Ok(csum::diff(old, quote.word))
}

#[inline(always)]
fn write_addr(
    ctx: &TcContext,
    quote: &mut QuotedPacket,
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

/// Applies a difference to the checksum at this offset; returns how that changes the sum around it. With `optional`
/// (UDP) a zero checksum means none and stays zero.
#[inline(always)]
fn update_checksum(
    ctx: &TcContext,
    quote: &mut QuotedPacket,
    at: u32,
    diff: u32,
    optional: bool,
) -> Result<u32, DropReason> {
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
