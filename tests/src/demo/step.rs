//! One step of the walk-through, and what it saw.

use anyhow::Result;

use super::stage::Stage;

/// What a step saw.
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
    /// What the user would type.
    pub command: &'static str,
    pub expected: &'static str,
    /// Done once, before looking.
    pub act: fn(&mut Stage) -> Result<()>,
    pub look: fn(&Stage) -> Result<Seen>,
}
