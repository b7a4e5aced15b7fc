//! The loop of `shunt monitor`: one thread that waits at once for events, for room to write, for signals and for the next
//! renewal, so that none of them waits for another. What it shows, and when it ends, [`super::watch`] is told.

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
    MonitorError, Wanted,
    lease::{self, Lease},
    names::Names,
    out::Out,
    ring::Ring,
    view::EventView,
};
use crate::inspect::pins::Pins;

/// Events that are read before what they became is written.
const BATCH: usize = 256;

/// One call of [`super::watch`].
pub struct Watching<'a, S> {
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
    /// Takes the lease and begins to be told.
    pub fn begin(pins: &Pins, wanted: &'a Wanted, show: S) -> Result<Self, MonitorError> {
        let lease = Lease::take(pins)?;
        let mut ring = Ring::open(pins)?;
        ring.discard();
        let names = Names::open(pins)?;
        let (since, now) = (lease::monotonic()?, Instant::now());
        let deadline = wanted.duration.and_then(|duration| now.checked_add(duration));
        lease.begin(wanted.filter.kinds(), wanted.one_in)?;
        let renewal = now + lease::RENEWED_EVERY;
        let out = Out::new().map_err(MonitorError::Output)?;
        say(format_args!("watching; Ctrl-C ends"));
        if let Some(service) = &wanted.filter.service
            && !names.knows(service)?
        {
            say(format_args!("note: no Service {service:?} in the maps yet"));
        }
        let (ahead, shown) = (ahead()?, 0);
        Ok(Self { wanted, show, ring, names, out, lease, since, ahead, shown, renewal, deadline })
    }

    /// Shows what is told, and gives the lease back, however it ends.
    pub fn until_the_end(mut self, signals: &SignalFd) -> Result<(), MonitorError> {
        let ended = self.go_on(signals);
        self.lease.end();
        self.tell_lost();
        ended
    }

    fn go_on(&mut self, signals: &SignalFd) -> Result<(), MonitorError> {
        let mut signalled = false;
        loop {
            let now = Instant::now();
            let over = signalled || self.is_complete() || self.deadline.is_some_and(|at| now >= at);
            if over {
                self.lease.end();
            } else if now >= self.renewal {
                self.renew(now)?;
            }
            // Nothing is taken from the ring that cannot be written: what does not fit there is lost and counted.
            let taken = if self.out.is_empty() && !self.is_complete() { self.take()? } else { 0 };
            let left = self.out.left();
            if over && left == 0 && taken == 0 {
                return Ok(());
            }
            let patience = match (over, signalled) {
                (false, _) => timeout(self.next_turn().saturating_duration_since(Instant::now())),
                // What has been told is shown, and for its reader is waited; but not where a signal came.
                (true, false) if left > 0 => PollTimeout::NONE,
                (true, _) => PollTimeout::ZERO,
            };
            let had_signal = std::mem::replace(&mut signalled, self.wait(patience, signals)?);
            if had_signal && left > 0 && self.out.left() == left {
                return Ok(());
            }
        }
    }

    /// When there is something to do that nobody tells.
    fn next_turn(&self) -> Instant {
        self.deadline.map_or(self.renewal, |at| at.min(self.renewal))
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

    /// Takes some events and writes down those that are wanted; how many were taken.
    fn take(&mut self) -> Result<usize, MonitorError> {
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

    /// Waits for events or, where there is something to write, for room, and writes. Whether a signal came: it stays so.
    fn wait(&mut self, patience: PollTimeout, signals: &SignalFd) -> Result<bool, MonitorError> {
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.out.fd(), self.out.interest()),
        ];
        if self.out.is_empty() {
            fds.push(PollFd::new(self.ring.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, patience) {
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
