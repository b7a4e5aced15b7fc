//! The walk-through: each step prints its action and the expected result, then the observed result.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::{
    interrupt,
    stage::Stage,
    step::{Seen, Step},
    steps,
};

/// Time limit for a change to reach the datapath; a step that checks too early checks again.
const SETTLE: Duration = Duration::from_secs(1);

/// Runs all steps; fails if an observed result is not the expected one.
pub fn all(stage: &mut Stage) -> Result<()> {
    let steps = steps::all();
    let mut wrong = Vec::new();
    for (nth, step) in steps.iter().enumerate() {
        println!("\n{:>2}. {}", nth + 1, step.title);
        (step.act)(stage)?;
        println!("    $ {}", step.command.replace('\n', "\n    $ "));
        println!("    expected: {}", step.expected);
        let seen = look(stage, step)?;
        println!("    seen:     {}", seen.text.replace('\n', "\n              "));
        println!("    {}", if seen.as_expected { "as expected" } else { "NOT AS EXPECTED" });
        if !seen.as_expected {
            wrong.push(nth + 1);
        }
        if interrupt::noted() {
            bail!("interrupted");
        }
    }
    println!("\n{} of {} steps as expected", steps.len() - wrong.len(), steps.len());
    if wrong.is_empty() { Ok(()) } else { bail!("not as expected: steps {wrong:?}") }
}

fn look(stage: &Stage, step: &Step) -> Result<Seen> {
    let start = Instant::now();
    loop {
        let seen = (step.look)(stage)?;
        if seen.as_expected || start.elapsed() > SETTLE || interrupt::noted() {
            return Ok(seen);
        }
        thread::sleep(Duration::from_millis(100));
    }
}
