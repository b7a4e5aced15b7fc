//! `shunt monitor`: new flows and refused or dropped packets, as they happen.
//!
//! The programs write events to EVENTS while MONITOR holds a valid [`lease`]. This process reads them ([`ring`]), applies the
//! [`filter`], resolves [`names`] and prints them ([`view`]); [`event_loop`] connects these parts. It works while the agent is
//! down and needs only CAP_BPF. It writes nothing but MONITOR, and never delays packets. Called by [`crate::cli`].

mod error;
mod event_loop;
pub mod filter;
mod lease;
mod names;
mod options;
mod ring;
mod stdout;
#[cfg(test)]
mod test_events;
pub mod view;

use std::io;

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

pub use self::{error::MonitorError, options::Options};
use self::{event_loop::EventLoop, view::EventView};
use crate::inspect::pins::Pins;

/// Prints events with `show`, until a signal, `--count`, `--duration` or a closed output ends it.
pub fn watch(
    pins: &Pins,
    options: &Options,
    show: impl FnMut(&EventView, &mut Vec<u8>) -> io::Result<()>,
) -> Result<(), MonitorError> {
    // Before the lease is taken, so that a signal cannot leave it active.
    let signals = signals()?;
    EventLoop::start(pins, options, show)?.run(&signals)
}

/// A descriptor for the signals that end the process, to poll together with the events.
fn signals() -> Result<SignalFd, MonitorError> {
    let failed = |errno: Errno| MonitorError::Io { action: "waiting for signals", source: errno.into() };
    let mask: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    mask.thread_block().map_err(failed)?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}
