//! `shunt explain`: traces a hypothetical packet through the datapath, stage by stage, without side effects.
//!
//! The packet runs through the real programs with BPF_PROG_TEST_RUN, in a [`sandbox`]: the embedded object is loaded once
//! more, with maps of its own that contain copies of the pinned maps. The programs decide; the reasons shown beside the
//! verdict come from the same tables ([`tables`]). Socket hooks cannot be test-run, so for processes of the node [`socket`]
//! evaluates these tables, and the packet runs from the egress hook on.
//!
//! [`request`] parses the arguments, [`route`] queries the kernel's routes, [`walk`] goes from stage to stage ([`hooks`],
//! [`socket`], [`render`]), and [`view`] is the output. Works while the agent is down. Needs the agent's capabilities:
//! CAP_BPF, CAP_NET_ADMIN, and CAP_PERFMON, without which the verifier rejects the programs.

mod error;
mod frame;
mod hooks;
mod render;
pub mod request;
mod route;
mod sandbox;
mod socket;
mod tables;
pub mod view;
mod walk;

pub use self::error::ExplainError;
use self::{request::Request, view::Explanation, walk::Walk};
use crate::inspect::pins::Pins;

/// Traces one packet.
pub fn explain(pins: &Pins, request: &Request) -> Result<Explanation, ExplainError> {
    Walk::new(pins, request)?.finish()
}
