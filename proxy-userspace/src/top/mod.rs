//! `shunt top`: which Services carry, refuse and drop how much just now, from two looks at the pinned maps. It works while
//! the agent is down, and needs CAP_BPF alone. Called by [`crate::cli`].
//!
//! [`sample`] reads, [`rates`] compares two samples (pure, as [`sort`] is), [`print`] writes one comparison, and [`live`]
//! shows one after the other: [`screen`] is what the user has chosen, [`view`] draws it.

pub mod live;
pub mod print;
pub mod rates;
pub mod sample;
pub mod screen;
pub mod sort;
pub mod view;

use std::{io, thread, time::Duration};

use self::{rates::Overview, sample::Sample, sort::SortKey};
use crate::inspect::{InspectError, pins::Pins};

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    pub interval: Duration,
    pub sort: SortKey,
    /// As many service ports at most.
    pub limit: Option<usize>,
    /// `NAMESPACE/NAME`: only this Service's.
    pub service: Option<String>,
}

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error("{action} failed")]
    Terminal { action: &'static str, source: io::Error },
}

/// One comparison over the interval.
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
