//! `shunt top`: current rates of each Service, from two samples of the pinned maps. It works while the agent is down, and
//! needs only CAP_BPF. Called by [`crate::cli`].
//!
//! [`sample`] reads the maps, [`rates`] compares two samples and [`sort`] orders the rows (both pure), [`print`] writes one
//! comparison. [`interactive`] is the terminal loop: [`state`] has the user's choices, [`draw`] draws the screen.

pub mod draw;
pub mod interactive;
pub mod print;
pub mod rates;
pub mod sample;
pub mod sort;
pub mod state;

use std::{io, thread, time::Duration};

use self::{rates::Overview, sample::Sample, sort::SortKey};
use crate::inspect::{InspectError, pins::Pins};

/// The resolved flags.
#[derive(Clone, Debug)]
pub struct Options {
    pub interval: Duration,
    pub sort: SortKey,
    /// Maximum number of service ports.
    pub limit: Option<usize>,
    /// Only this Service (`NAMESPACE/NAME`).
    pub service: Option<String>,
}

/// Errors of `shunt top`.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error("{action} failed")]
    Terminal { action: &'static str, source: io::Error },
}

/// Measures over one interval.
pub fn once(pins: &Pins, options: &Options) -> Result<Overview, TopError> {
    let before = Sample::read(pins)?;
    thread::sleep(options.interval);
    let mut overview = Overview::between(&before, &Sample::read(pins)?);
    if let Some(name) = &options.service {
        overview.only(name)?;
    }
    sort::sort(&mut overview.services, options.sort, false);
    overview.services.truncate(options.limit.unwrap_or(usize::MAX));
    Ok(overview)
}
