//! `shunt monitor`: flows that begin and packets that are refused or dropped, as it happens.
//!
//! The programs tell of them in EVENTS while MONITOR says that somebody wants to know ([`lease`]); this process reads
//! them ([`ring`]), leaves out what nobody asked for ([`filter`]), puts names to numbers ([`names`]) and shows them
//! ([`view`]). It works while the agent is down and needs CAP_BPF alone; it changes nothing but MONITOR, and packets go
//! their way whether it keeps up or not.
//!
//! Called by [`crate::cli`]. How events are told from tests of the programs: `tests/tests/packet/monitor.rs`.

pub mod filter;
mod lease;
mod names;
mod out;
mod ring;
pub mod view;

use std::{
    fmt,
    io::{self, Write as _},
    os::fd::AsFd as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use proxy_common::FlowEvent;

use self::{filter::Filter, lease::Lease, names::Names, out::Out, ring::Ring, view::EventView};
use crate::inspect::{InspectError, pins::Pins};

/// Events that are read before what they became is written.
const BATCH: usize = 256;

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
    let mut watching = Watching::begin(pins, wanted, show)?;
    let ended = watching.go_on(&signals);
    watching.lease.end();
    watching.tell_lost();
    ended
}

/// Ctrl-C, and what ends a process or closes its terminal, to be waited for beside the events.
fn signals() -> Result<SignalFd, MonitorError> {
    let failed = |errno: Errno| MonitorError::Io { action: "waiting for signals", source: errno.into() };
    let mask: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    mask.thread_block().map_err(failed)?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}

/// One call of `watch`.
struct Watching<'a, S> {
    wanted: &'a Wanted,
    show: S,
    ring: Ring,
    names: Names,
    out: Out,
    lease: Lease,
    /// What was told before is an earlier watcher's.
    since: u64,
    /// How far the wall clock is ahead of the events', in nanoseconds.
    ahead: i128,
    shown: u64,
    renewal: Instant,
    deadline: Option<Instant>,
}

impl<'a, S: FnMut(&EventView, &mut Vec<u8>) -> io::Result<()>> Watching<'a, S> {
    fn begin(pins: &Pins, wanted: &'a Wanted, show: S) -> Result<Self, MonitorError> {
        let lease = Lease::take(pins)?;
        let mut ring = Ring::open(pins)?;
        ring.discard();
        let names = Names::open(pins)?;
        let (since, now) = (lease::monotonic()?, Instant::now());
        let deadline = wanted.duration.and_then(|duration| now.checked_add(duration));
        lease.begin(wanted.filter.kinds(), wanted.one_in)?;
        let renewal = now + lease::RENEWED_EVERY;
        let out = Out::new();
        say(format_args!("watching; Ctrl-C ends"));
        if let Some(service) = &wanted.filter.service
            && !names.knows(service)?
        {
            say(format_args!("note: no Service {service:?} in the maps yet"));
        }
        let (ahead, shown) = (ahead()?, 0);
        Ok(Self { wanted, show, ring, names, out, lease, since, ahead, shown, renewal, deadline })
    }

    fn go_on(&mut self, signals: &SignalFd) -> Result<(), MonitorError> {
        loop {
            let now = Instant::now();
            let over = self.is_complete() || self.deadline.is_some_and(|deadline| now >= deadline);
            if over {
                self.lease.end();
            } else if now >= self.renewal {
                self.renew(now)?;
            }
            // Nothing is taken from the ring that cannot be written: what does not fit there is lost and counted.
            if !over && self.out.is_empty() {
                self.take()?;
            }
            if over && self.out.is_empty() || self.wait(over, signals)? {
                return Ok(());
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.wanted.count.is_some_and(|count| self.shown >= count)
    }

    /// Once a second.
    fn renew(&mut self, now: Instant) -> Result<(), MonitorError> {
        self.lease.renew()?;
        self.renewal = now + lease::RENEWED_EVERY;
        self.ahead = ahead()?;
        self.names.forget();
        self.tell_lost();
        Ok(())
    }

    fn tell_lost(&mut self) {
        let lost = self.lease.newly_lost();
        if lost > 0 {
            let plural = if lost == 1 { "" } else { "s" };
            say(format_args!(
                "{lost} event{plural} lost: more than can be shown; --kind, --sample N show less"
            ));
        }
    }

    /// Takes some events and writes down those that are wanted.
    fn take(&mut self) -> Result<(), MonitorError> {
        let Self { wanted, show, ring, names, out, since, ahead, shown, .. } = self;
        ring.read(BATCH, |event| {
            if event.time < *since || !wanted.filter.wants(event) {
                return Ok(true);
            }
            let device = names.device(event.ifindex);
            if !wanted.filter.wants_device(device.as_deref()) {
                return Ok(true);
            }
            let service = names.service(event)?;
            if !wanted.filter.wants_service(service.as_deref().map(|service| service.name.as_str())) {
                return Ok(true);
            }
            let view = EventView::new(event, *ahead, service.as_deref(), device.as_deref());
            show(&view, out.text()).map_err(MonitorError::Output)?;
            *shown += 1;
            Ok(wanted.count.is_none_or(|count| *shown < count))
        })
    }

    /// Waits for events or, where there is something to write, for room; at most up to the next renewal. Whether a signal
    /// came.
    fn wait(&mut self, over: bool, signals: &SignalFd) -> Result<bool, MonitorError> {
        let idle = self.out.is_empty();
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.out.fd(), self.out.interest()),
        ];
        if idle && !over {
            fds.push(PollFd::new(self.ring.as_fd(), PollFlags::POLLIN));
        }
        let until = self.deadline.filter(|_| !over).map_or(self.renewal, |at| at.min(self.renewal));
        match poll(&mut fds, timeout(until.saturating_duration_since(Instant::now()))) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                return Err(MonitorError::Io { action: "waiting for events", source: errno.into() });
            }
        }
        let ready = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        let (signal, stdout) = (ready(&fds[0]), ready(&fds[1]));
        self.out.write(stdout).map_err(MonitorError::Output)?;
        Ok(signal.contains(PollFlags::POLLIN))
    }
}

/// On stderr; whoever has closed that does without.
fn say(text: fmt::Arguments<'_>) {
    let _closed = writeln!(io::stderr(), "{text}");
}

/// Whole milliseconds, rounded up: rounded down, the last one would be waited for without waiting.
fn timeout(left: Duration) -> PollTimeout {
    let millis = left.as_micros().div_ceil(1000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}

/// How far the wall clock is ahead of the events'.
fn ahead() -> Result<i128, MonitorError> {
    Ok(i128::from(lease::wall_clock()?) - i128::from(lease::monotonic()?))
}

/// Events for tests.
#[cfg(test)]
mod sample {
    use std::net::Ipv4Addr;

    use bytemuck::Zeroable as _;
    use proxy_common::{Addr, Counter, EventKind, FlowEvent, Hook, Port, Proto};

    fn addr(a: u8, b: u8, c: u8, d: u8) -> Addr {
        Ipv4Addr::new(a, b, c, d).into()
    }

    pub fn flow() -> FlowEvent {
        FlowEvent {
            time: 1_500_000_000,
            src: addr(10, 0, 0, 1),
            dst: addr(10, 68, 0, 10),
            to: addr(172, 20, 1, 2),
            sport: Port::new(4000),
            dport: Port::new(80),
            to_port: Port::new(8080),
            client_port: Port::new(5000),
            proto: Proto::TCP,
            kind: EventKind::Flow as u8,
            hook: Hook::Ingress as u8,
            flags: FlowEvent::MASQUERADED,
            service: 3,
            backend: 7,
            ifindex: 4,
            ..FlowEvent::zeroed()
        }
    }

    /// A socket's.
    pub fn refused() -> FlowEvent {
        FlowEvent {
            to: Addr::UNSPECIFIED_V6,
            to_port: Port::ZERO,
            client_port: Port::ZERO,
            kind: EventKind::Refused as u8,
            hook: Hook::Socket as u8,
            reason: Counter::NoBackend as u32,
            flags: 0,
            service: 0,
            backend: 0,
            ifindex: 0,
            pid: 4242,
            ..flow()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_millisecond_is_waited_for() {
        let millis = |left| timeout(left).as_millis();
        assert_eq!(millis(Duration::ZERO), Some(0));
        assert_eq!(millis(Duration::from_micros(1)), Some(1));
        assert_eq!(millis(Duration::from_millis(900)), Some(900));
        assert!(millis(Duration::from_secs(u64::MAX)).is_some());
    }
}
