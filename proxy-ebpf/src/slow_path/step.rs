//! How far a packet got on the slow path.

use crate::base::{scratch::SlowPacket, verdict::Verdict};

/// The result of a stage.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum SlowStep {
    /// The packet continues as it is now.
    Pass,
    /// Undecided: the next stage takes over. After [`super::ingress`] and [`super::egress`], the packet has no known
    /// flow.
    Continue,
    /// An ICMP message that may be about a packet of a flow; [`super::receive`] handles it.
    IcmpError,
    /// The flow has no source yet: the hook calls `conntrack::snat`, from where the stack suffices, and this stage again.
    NeedsSource,
    /// Dropped, or sent elsewhere: `packet.verdict`.
    Done,
}

impl SlowPacket {
    #[inline(always)]
    pub fn verdict(&self, step: SlowStep) -> Verdict {
        match step {
            SlowStep::Continue | SlowStep::Pass | SlowStep::IcmpError | SlowStep::NeedsSource => {
                Verdict::NEXT
            }
            SlowStep::Done => self.verdict,
        }
    }

    /// The step for this verdict.
    #[inline(always)]
    pub fn done(&mut self, verdict: Verdict) -> SlowStep {
        if verdict.is_next() {
            return SlowStep::Pass;
        }
        self.verdict = verdict;
        SlowStep::Done
    }
}
