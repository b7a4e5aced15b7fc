//! Lines of progress: on standard error, because standard output belongs to the program that a task runs.

use std::fmt::Display;

/// One line: the step and what becomes of it.
pub fn say(step: &str, what: impl Display) {
    eprintln!("{step:>12}  {what}");
}
