//! One step of the walk-through, and its observed result.

use anyhow::Result;

use super::stage::Stage;

/// The observed result of a step.
#[derive(Debug)]
pub struct Seen {
    pub text: String,
    pub as_expected: bool,
}

impl Seen {
    pub fn new(as_expected: bool, text: impl Into<String>) -> Self {
        Self { text: text.into(), as_expected }
    }
}

/// One step.
pub struct Step {
    pub title: &'static str,
    /// The command a user would type.
    pub command: &'static str,
    pub expected: &'static str,
    /// Done once, before the check.
    pub act: fn(&mut Stage) -> Result<()>,
    pub look: fn(&Stage) -> Result<Seen>,
}
