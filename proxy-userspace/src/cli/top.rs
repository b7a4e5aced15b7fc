//! `shunt top`: one measurement with `--once`, else the interactive view.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use super::{
    args::TopArgs,
    durations,
    failure::Failure,
    output::{Output, colour_on_stdout},
    usage_error::UsageError,
};
use crate::{
    inspect::pins::Pins,
    top::{self, Options, TopError},
};

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3600);

pub fn run(pins: &Pins, output: &Output, args: &TopArgs) -> Result<(), Failure> {
    let options = options(args)?;
    if !args.once {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Err(UsageError::NoTerminal.into());
        }
        return Ok(top::interactive::run(pins, &options, colour_on_stdout())?);
    }
    let overview = top::once(pins, &options)?;
    if !overview.service_stats {
        eprintln!(
            "note: flows, packets and bytes of Services are not counted: the agent runs with --service-stats-max 0"
        );
    }
    output.print_view(&[&overview], |out| {
        top::print::print_top_into(out, &overview, output.headers, output.wide())
    })
}

fn options(args: &TopArgs) -> Result<Options, UsageError> {
    let interval = durations::parse("--interval", &args.interval)?;
    if !(SHORTEST..=LONGEST).contains(&interval) {
        let expected = "a duration from 100ms to 1h";
        return Err(UsageError::BadValue { flag: "--interval", value: args.interval.clone(), expected });
    }
    Ok(Options {
        interval,
        sort: args.sort,
        limit: args.limit.map(|limit| limit as usize),
        service: args.service.clone(),
    })
}

impl From<TopError> for Failure {
    /// A failure to read the maps is reported like that of any read command.
    fn from(error: TopError) -> Self {
        match error {
            TopError::Inspect(error) => Self::Inspect(error),
            terminal => Self::Top(terminal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::sort::SortKey;

    #[test]
    fn intervals_have_bounds() {
        let args = |interval: &str| TopArgs {
            once: true,
            interval: interval.to_owned(),
            sort: SortKey::Service,
            limit: Some(3),
            service: None,
        };
        let found = options(&args("1.5s")).unwrap();
        assert_eq!((found.interval, found.limit), (Duration::from_millis(1500), Some(3)));
        for bad in ["0", "50ms", "2h", "soon"] {
            let error = options(&args(bad)).unwrap_err().to_string();
            assert!(error.contains("--interval") && error.contains(bad), "{error}");
        }
    }
}
