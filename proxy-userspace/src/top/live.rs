//! The loop of `shunt top` on a terminal: sample, draw, wait for a key or the next time. The terminal is as it was before
//! whichever way this ends: by a key, an error, a signal or a panic.

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
    Options, TopError,
    rates::Overview,
    sample::Sample,
    screen::{Screen, Wish},
    sort, view,
};
use crate::inspect::pins::Pins;

/// Between two looks whether a signal came: crossterm goes on waiting through one.
const LOOK: Duration = Duration::from_millis(200);

/// Runs until the user, or a signal, ends it.
pub fn run(pins: &Pins, options: &Options, colour: bool) -> Result<(), TopError> {
    // What cannot be shown is said before the screen is taken.
    let sample = Sample::read(pins)?;
    let mut top = Top { pins, options, screen: Screen::new(options), before: sample.clone(), now: sample };
    if let Some(name) = &options.service {
        top.overview().only(name)?;
    }
    let stop = stop_on_signals().map_err(failed("waiting for signals"))?;
    // Before it is taken: that may fail halfway.
    let _restored = Restore;
    // Sets a panic hook, too, which gives the terminal back before the message is written.
    let mut terminal = ratatui::try_init().map_err(failed("taking the terminal"))?;
    top.run(&mut terminal, &stop, colour)
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> TopError {
    move |source| TopError::Terminal { action, source }
}

struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        // A terminal that has gone away needs nothing back.
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
    screen: Screen,
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
            let drawing = terminal.draw(|frame| view::draw(frame, &overview, &mut self.screen, colour));
            drawing.map_err(failed("drawing"))?;
            if self.wait(stop)? == Wish::Quit {
                return Ok(());
            }
            if !self.screen.paused && self.now.at.elapsed() >= self.screen.interval {
                self.before = std::mem::replace(&mut self.now, Sample::read(self.pins)?);
            }
        }
        Ok(())
    }

    /// The last two samples, in the order that is wanted.
    fn overview(&self) -> Overview {
        let mut overview = Overview::between(&self.before, &self.now);
        if let Some(name) = &self.options.service {
            // One that is gone may come again.
            let _none_now = overview.only(name);
        }
        sort::sort(&mut overview.services, self.screen.sort, self.screen.reversed);
        overview
    }

    /// Until there is something to draw: a key, another size, a new sample, or the end.
    fn wait(&mut self, stop: &AtomicBool) -> Result<Wish, TopError> {
        let due = self.now.at + self.screen.interval;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            let patience = if self.screen.paused { LOOK } else { left.min(LOOK) };
            if event::poll(patience).map_err(failed("waiting for keys"))? {
                match event::read().map_err(failed("reading keys"))? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => {
                        return Ok(self.screen.on_key(key));
                    }
                    Event::Resize(..) => return Ok(Wish::Draw),
                    _ => {}
                }
            }
            if stop.load(Ordering::Relaxed) || (left.is_zero() && !self.screen.paused) {
                return Ok(Wish::Draw);
            }
        }
    }
}
