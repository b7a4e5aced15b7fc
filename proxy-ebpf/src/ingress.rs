//! The ingress hook: translates destinations. VIP to backend, or one of the node's translated sources back
//! to the client it stands for. What begins here is `new_flow.rs`'s.

use aya_ebpf::programs::TcContext;
use proxy_common::{CtEntry, CtKey, Half};

use crate::{
    begin::work,
    echo, flow,
    new_flow::{self, Step},
    odd,
    packet::{Aside, Link, Packet, ifindex, parse},
    rewrite::{Rewrite, rewrite},
    service,
    verdict::Verdict,
    watch,
};

#[inline(always)]
pub fn ingress<L: Link>(ctx: &TcContext) -> Verdict {
    let work = match parse::<L>(ctx, Half::Ingress) {
        Ok(packet) => {
            if packet.echo {
                return echo::answer::<L>(ctx, Half::Ingress);
            }
            if let Some(entry) = flow::lookup(&packet.key) {
                if !(packet.is_syn() && begins_anew(&packet.key, entry)) {
                    return known::<L>(ctx, &packet, entry);
                }
                flow::forget(&packet.key, entry);
            }
            if !new_flow::may_concern(&packet.key) {
                return Verdict::NEXT;
            }
            let Some(work) = work() else {
                return Verdict::NEXT;
            };
            work.request = packet.key;
            work.tcp_flags = u32::from(packet.tcp_flags);
            work.odd = 0;
            work
        }
        Err(Aside::Odd) => {
            let (Some(work), Some(odd)) = (work(), odd::odd()) else {
                return Verdict::NEXT;
            };
            match odd::arrive::<L>(ctx, odd, Half::Ingress) {
                odd::Step::New => {}
                done => return odd.verdict(done),
            }
            work.odd = 1;
            match odd::ingress::<L>(ctx, odd, work) {
                odd::Step::New => work,
                done => {
                    let verdict = odd.verdict(done);
                    odd::settle::<L>(ctx, odd, verdict.is_next());
                    return verdict;
                }
            }
        }
        Err(Aside::Foreign) => return Verdict::NEXT,
    };
    work.ifindex = ifindex(ctx);
    work.lane = 0;
    // From here on nothing is read from the parsed packet, so that all kinds of packets meet what follows in one
    // state of the verifier; `translate` and `refuse` parse again.
    let step = match new_flow::decide(work) {
        Step::Begin => new_flow::record(work),
        step => step,
    };
    let verdict = match step {
        Step::Pass | Step::Begin => Verdict::NEXT,
        Step::Translate => new_flow::translate::<L>(ctx, work),
        Step::Refuse => Verdict::refused(work.reason),
        Step::Drop => Verdict::dropped(work.reason),
    };
    if work.odd != 0
        && let Some(odd) = odd::odd()
    {
        odd::settle::<L>(ctx, odd, verdict.is_next());
    }
    verdict
}

/// A SYN on the tuple of a flow that is over, that has had no answer from a backend that is gone, or that another
/// proxy translated (whose end may have gone unseen).
#[inline(always)]
pub fn begins_anew(key: &CtKey, entry: &CtEntry) -> bool {
    if !entry.has(CtEntry::REQUEST) {
        return false;
    }
    flow::is_closed(key.proto, entry)
        || entry.has(CtEntry::SERVICE)
            && (entry.has(CtEntry::IDENTITY) || service::active_backend(entry.backend).is_none())
}

/// A packet of a recorded flow.
#[inline(always)]
fn known<L: Link>(ctx: &TcContext, packet: &Packet, entry: &mut CtEntry) -> Verdict {
    if entry.has(CtEntry::REQUEST) {
        flow::touch(&packet.key, packet.tcp_flags, entry);
    }
    if entry.has(CtEntry::IDENTITY) {
        return Verdict::NEXT;
    }
    if entry.has(CtEntry::REQUEST) {
        watch::request(ctx, entry.service);
    }
    let to = Rewrite { addr: entry.addr, port: entry.port(), peer_port: entry.peer_port };
    match rewrite::<L>(ctx, packet, &to) {
        Ok(()) => Verdict::NEXT,
        Err(reason) => reason.into(),
    }
}
