//! `shunt explain`: what shunt would do with a packet now, stage by stage, and nothing done.
//!
//! The packet goes through the programs themselves: the embedded object is loaded once more ([`object`]) over maps of
//! its own with what the pinned maps hold ([`twin`]), and run by BPF_PROG_TEST_RUN. The programs decide; what is said
//! about why is read beside them from the same tables ([`tables`]). Socket hooks cannot be test-run: of the node's own
//! processes the same tables are walked here ([`socket`]), and the packet is run from the egress hook on.
//!
//! [`question`] is what is asked, [`route`] where packets come from and go to, [`walk`] the way from stage to stage,
//! [`view`] what is shown. Works while the agent is down; needs what the agent needs: CAP_BPF, CAP_NET_ADMIN and
//! CAP_PERFMON, without which the verifier refuses these programs.

mod copies;
mod frame;
mod hooks;
mod object;
pub mod question;
mod route;
mod socket;
mod tables;
mod tell;
mod twin;
pub mod view;
mod walk;

use std::{io, net::IpAddr};

use self::{question::Question, view::Explanation, walk::Walk};
use crate::{
    datapath::DatapathError,
    inspect::{InspectError, pins::Pins},
};

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error(transparent)]
    Question(#[from] question::QuestionError),
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Object(#[from] object::ObjectError),
    #[error("the programs that run have no global {0}: they are another version's; ask the shunt that runs")]
    NoGlobal(&'static str),
    #[error("copying {name}")]
    Map { name: &'static str, source: io::Error },
    #[error("running {name} over the packet")]
    Run { name: &'static str, source: io::Error },
    #[error("asking the kernel for {what}")]
    Netlink { what: &'static str, source: io::Error },
    #[error("reading the kernel's clock")]
    Clock(#[source] io::Error),
    #[error("there is no device {0:?} in this network namespace")]
    NoDevice(String),
    #[error(
        "the node has no route to {addr}, so nobody can tell by which device its packets come: name it with --from"
    )]
    NoRoute { addr: IpAddr, source: io::Error },
}

impl ExplainError {
    /// Whether the words on the command line are at fault, and not the machine.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Question(_))
    }

    fn map(name: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Map { name, source }
    }
}

/// What would become of the packet.
pub fn explain(pins: &Pins, question: &Question) -> Result<Explanation, ExplainError> {
    Walk::new(pins, question)?.finish()
}
