//! `shunt monitor`: flows that begin and packets that are refused or dropped, as it happens.
//!
//! The programs tell of them in EVENTS while MONITOR says that somebody wants to know ([`lease`]); this process reads
//! them ([`ring`]), leaves out what nobody asked for ([`filter`]), puts names to numbers ([`names`]) and shows them
//! ([`view`]). The loop is in [`watching`]. It works while the agent is down and needs CAP_BPF alone; it changes nothing
//! but MONITOR, and packets go their way whether it keeps up or not. Called by [`crate::cli`].

pub mod filter;
mod lease;
mod names;
mod out;
mod ring;
#[cfg(test)]
mod sample;
pub mod view;
mod watching;

use std::{io, path::PathBuf, time::Duration};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use proxy_common::FlowEvent;

use self::{filter::Filter, view::EventView, watching::Watching};
use crate::inspect::{InspectError, pins::Pins};

/// What to watch for, and how long.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub filter: Filter,
    /// One event in so many, at random.
    pub one_in: u32,
    /// Events to show.
    pub count: Option<u64>,
    pub duration: Option<Duration>,
}

/// Why nothing (more) is shown.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(
        "another `shunt monitor` watches already (it holds the lock on {}): events have one reader", .0.display()
    )]
    Watched(PathBuf),
    #[error(
        "{} is gone: `shunt cleanup` has removed the datapath, or it was set up anew since; start again once shunt runs",
        .0.display()
    )]
    Gone(PathBuf),
    #[error("opening the ring buffer {} failed", path.display())]
    Ring { path: PathBuf, source: io::Error },
    #[error(
        "{} holds an event of {found} bytes, and this shunt expects {}: the programs that run are another version's; \
         watch with the shunt that made them",
        path.display(), size_of::<FlowEvent>()
    )]
    Foreign { path: PathBuf, found: usize },
    #[error("{action} failed")]
    Io { action: &'static str, source: io::Error },
    #[error("writing the output failed")]
    Output(#[source] io::Error),
}

/// Shows events with `show` until a signal, `--count`, `--duration` or the reader of the output ends it.
pub fn watch(
    pins: &Pins,
    wanted: &Wanted,
    show: impl FnMut(&EventView, &mut Vec<u8>) -> io::Result<()>,
) -> Result<(), MonitorError> {
    // Before the lease, so that no signal leaves it behind.
    let signals = signals()?;
    Watching::begin(pins, wanted, show)?.until_the_end(&signals)
}

/// Ctrl-C, and what ends a process or closes its terminal, to be waited for beside the events.
fn signals() -> Result<SignalFd, MonitorError> {
    let failed = |errno: Errno| MonitorError::Io { action: "waiting for signals", source: errno.into() };
    let mask: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    mask.thread_block().map_err(failed)?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}
