//! The event loop of `shunt monitor`: one thread polls events, space in the output, signals and the renewal of the lease, so
//! that none of them blocks another.

use std::{
    fmt,
    io::{self, Write as _},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signalfd::SignalFd,
};

use super::{
    error::MonitorError,
    lease::{self, Lease},
    names::Names,
    options::Options,
    ring::Ring,
    stdout::Stdout,
    view::EventView,
};
use crate::inspect::pins::Pins;

/// Maximum number of events that are read before output is written.
const BATCH: usize = 256;

/// One run of the command.
pub struct EventLoop<'a, S> {
    options: &'a Options,
    show: S,
    ring: Ring,
    names: Names,
    stdout: Stdout,
    lease: Lease,
    /// Older events belong to an earlier reader.
    since: u64,
    /// Offset from the clock of the events to the wall clock, in nanoseconds.
    clock_offset: i128,
    shown: u64,
    renewal: Instant,
    deadline: Option<Instant>,
}

impl<'a, S: FnMut(&EventView, &mut Vec<u8>) -> io::Result<()>> EventLoop<'a, S> {
    /// Takes the lease and enables events.
    pub fn start(pins: &Pins, options: &'a Options, show: S) -> Result<Self, MonitorError> {
        let lease = Lease::take(pins)?;
        let mut ring = Ring::open(pins)?;
        ring.discard();
        let names = Names::open(pins)?;
        let (since, now) = (lease::monotonic()?, Instant::now());
        let deadline = options.duration.and_then(|duration| now.checked_add(duration));
        lease.begin(options.filter.kinds(), options.one_in)?;
        let renewal = now + lease::RENEWAL_INTERVAL;
        let stdout = Stdout::new().map_err(MonitorError::Output)?;
        notify(format_args!("watching; press Ctrl-C to exit"));
        if let Some(service) = &options.filter.service
            && !names.has_service(service)?
        {
            notify(format_args!("note: no Service {service:?} in the maps yet"));
        }
        let (clock_offset, shown) = (clock_offset()?, 0);
        Ok(Self { options, show, ring, names, stdout, lease, since, clock_offset, shown, renewal, deadline })
    }

    /// Prints events until the end, and releases the lease in any case.
    pub fn run(mut self, signals: &SignalFd) -> Result<(), MonitorError> {
        let result = self.poll_events(signals);
        self.lease.end();
        self.report_lost();
        result
    }

    fn poll_events(&mut self, signals: &SignalFd) -> Result<(), MonitorError> {
        let mut signalled = false;
        loop {
            let now = Instant::now();
            let over = signalled || self.is_complete() || self.deadline.is_some_and(|at| now >= at);
            if over {
                self.lease.end();
            } else if now >= self.renewal {
                self.renew(now)?;
            }
            // Events that cannot be written yet stay in the ring. If it overflows, the programs count them as lost.
            let taken = if self.stdout.is_empty() && !self.is_complete() { self.read_events()? } else { 0 };
            let left = self.stdout.left();
            if over && left == 0 && taken == 0 {
                return Ok(());
            }
            let timeout = match (over, signalled) {
                (false, _) => poll_timeout(self.next_timer().saturating_duration_since(Instant::now())),
                // Events that were read are still written, however long the reader takes, unless a signal arrived.
                (true, false) if left > 0 => PollTimeout::NONE,
                (true, _) => PollTimeout::ZERO,
            };
            let had_signal = std::mem::replace(&mut signalled, self.wait(timeout, signals)?);
            if had_signal && left > 0 && self.stdout.left() == left {
                return Ok(());
            }
        }
    }

    /// The next timer: renewal or end.
    fn next_timer(&self) -> Instant {
        self.deadline.map_or(self.renewal, |at| at.min(self.renewal))
    }

    fn is_complete(&self) -> bool {
        self.options.count.is_some_and(|count| self.shown >= count)
    }

    /// Runs once a second.
    fn renew(&mut self, now: Instant) -> Result<(), MonitorError> {
        self.lease.renew()?;
        self.renewal = now + lease::RENEWAL_INTERVAL;
        self.clock_offset = clock_offset()?;
        self.names.clear();
        self.report_lost();
        Ok(())
    }

    fn report_lost(&mut self) {
        let lost = self.lease.newly_lost();
        if lost > 0 {
            let plural = if lost == 1 { "" } else { "s" };
            notify(format_args!(
                "{lost} event{plural} lost: the output is too slow; --kind or --sample N reduce the number of events"
            ));
        }
    }

    /// Reads some events and formats those that match the filter; returns the number read.
    fn read_events(&mut self) -> Result<usize, MonitorError> {
        let Self { options, show, ring, names, stdout, since, clock_offset, shown, .. } = self;
        ring.read(BATCH, |event| {
            if event.time < *since || !options.filter.matches(event) {
                return Ok(true);
            }
            let device = names.device(event.ifindex);
            if !options.filter.matches_device(device.as_deref()) {
                return Ok(true);
            }
            let service = names.service(event)?;
            if !options.filter.matches_service(service.as_deref().map(|service| service.name.as_str())) {
                return Ok(true);
            }
            let view = EventView::new(event, *clock_offset, service.as_deref(), device.as_deref());
            show(&view, stdout.text()).map_err(MonitorError::Output)?;
            *shown += 1;
            Ok(options.count.is_none_or(|count| *shown < count))
        })
    }

    /// Waits for events or, with pending output, for space to write it, and writes. Returns whether a signal is pending.
    fn wait(&mut self, timeout: PollTimeout, signals: &SignalFd) -> Result<bool, MonitorError> {
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stdout.fd(), self.stdout.interest()),
        ];
        if self.stdout.is_empty() {
            fds.push(PollFd::new(self.ring.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                return Err(MonitorError::Io { action: "waiting for events", source: errno.into() });
            }
        }
        let ready = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        let (signal, writable) = (ready(&fds[0]), ready(&fds[1]));
        self.stdout.write(writable).map_err(MonitorError::Output)?;
        Ok(signal.contains(PollFlags::POLLIN))
    }
}

/// A notice on stderr; a closed stderr is no error.
fn notify(text: fmt::Arguments<'_>) {
    let _closed = writeln!(io::stderr(), "{text}");
}

/// Whole milliseconds, rounded up: rounding down would busy-wait during the last millisecond.
fn poll_timeout(left: Duration) -> PollTimeout {
    let millis = left.as_micros().div_ceil(1000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}

/// Offset from the clock of the events to the wall clock.
fn clock_offset() -> Result<i128, MonitorError> {
    Ok(i128::from(lease::wall_clock()?) - i128::from(lease::monotonic()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_round_up() {
        let millis = |left| poll_timeout(left).as_millis();
        assert_eq!(millis(Duration::ZERO), Some(0));
        assert_eq!(millis(Duration::from_micros(1)), Some(1));
        assert_eq!(millis(Duration::from_millis(900)), Some(900));
        assert!(millis(Duration::from_secs(u64::MAX)).is_some());
    }
}
