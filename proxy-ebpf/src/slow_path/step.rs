//! How far a packet got on the slow path.

use crate::base::{scratch::SlowPacket, verdict::Verdict};

/// What is left to do with a packet at a hook.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum SlowStep {
    /// Goes on as it is now.
    Pass,
    /// Belongs to no recorded flow; at ingress `flow` has what a decision needs.
    NewFlow,
    /// An ICMP message that may be about a flow's packet: [`arrive`] sees to it.
    IcmpError,
    /// Is dropped or was sent elsewhere: `packet.verdict`.
    Done,
}

impl SlowPacket {
    #[inline(always)]
    pub fn verdict(&self, step: SlowStep) -> Verdict {
        match step {
            SlowStep::NewFlow | SlowStep::Pass | SlowStep::IcmpError => Verdict::NEXT,
            SlowStep::Done => self.verdict,
        }
    }

    /// The step that leads to this verdict.
    #[inline(always)]
    pub fn done(&mut self, verdict: Verdict) -> SlowStep {
        if verdict.is_next() {
            return SlowStep::Pass;
        }
        self.verdict = verdict;
        SlowStep::Done
    }
}
