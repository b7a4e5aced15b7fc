//! The loop of `shunt top` on a terminal: sample, draw, wait for a key or the next interval. The terminal is always restored
//! at the end: after a key, an error, a signal or a panic.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::{
    Options, TopError, draw,
    rates::Overview,
    sample::Sample,
    sort,
    state::{Action, State},
};
use crate::inspect::pins::Pins;

/// Interval of the check for signals: crossterm's poll is not interrupted by them.
const SIGNAL_CHECK: Duration = Duration::from_millis(200);

/// Runs until the user quits or a signal arrives.
pub fn run(pins: &Pins, options: &Options, colour: bool) -> Result<(), TopError> {
    // Report errors before the terminal is switched to the alternate screen.
    let sample = Sample::read(pins)?;
    let mut top = Top { pins, options, state: State::new(options), before: sample.clone(), now: sample };
    if let Some(name) = &options.service {
        top.overview().only(name)?;
    }
    let stop = stop_on_signals().map_err(failed("waiting for signals"))?;
    // Before the initialization, which may fail halfway.
    let _restored = Restore;
    // This also sets a panic hook that restores the terminal before the message is printed.
    let mut terminal = ratatui::try_init().map_err(failed("taking the terminal"))?;
    top.run(&mut terminal, &stop, colour)
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> TopError {
    move |source| TopError::Terminal { action, source }
}

struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        // A closed terminal needs no restore.
        let _gone = ratatui::try_restore();
    }
}

fn stop_on_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

struct Top<'a> {
    pins: &'a Pins,
    options: &'a Options,
    state: State,
    before: Sample,
    now: Sample,
}

impl Top<'_> {
    fn run(
        &mut self,
        terminal: &mut DefaultTerminal,
        stop: &AtomicBool,
        colour: bool,
    ) -> Result<(), TopError> {
        while !stop.load(Ordering::Relaxed) {
            let overview = self.overview();
            let drawing = terminal.draw(|frame| draw::draw(frame, &overview, &mut self.state, colour));
            drawing.map_err(failed("drawing"))?;
            if self.wait(stop)? == Action::Quit {
                return Ok(());
            }
            if !self.state.paused && self.now.at.elapsed() >= self.state.interval {
                self.before = std::mem::replace(&mut self.now, Sample::read(self.pins)?);
            }
        }
        Ok(())
    }

    /// The comparison of the last two samples, filtered and sorted.
    fn overview(&self) -> Overview {
        let mut overview = Overview::between(&self.before, &self.now);
        if let Some(name) = &self.options.service {
            // A deleted Service may be created again.
            let _none_now = overview.only(name);
        }
        sort::sort(&mut overview.services, self.state.sort, self.state.reversed);
        overview
    }

    /// Waits until a redraw is due: a key, a new size, a new sample, or the end.
    fn wait(&mut self, stop: &AtomicBool) -> Result<Action, TopError> {
        let due = self.now.at + self.state.interval;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            let timeout = if self.state.paused { SIGNAL_CHECK } else { left.min(SIGNAL_CHECK) };
            if event::poll(timeout).map_err(failed("waiting for keys"))? {
                match event::read().map_err(failed("reading keys"))? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => {
                        return Ok(self.state.on_key(key));
                    }
                    Event::Resize(..) => return Ok(Action::Redraw),
                    _ => {}
                }
            }
            if stop.load(Ordering::Relaxed) || (left.is_zero() && !self.state.paused) {
                return Ok(Action::Redraw);
            }
        }
    }
}
