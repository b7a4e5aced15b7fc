//! The read commands: each reads a view from the pins and prints it in the selected format.

use std::io::Write as _;

use super::{
    args::{ConntrackCommand, ExplainArgs, MapCommand, ServiceCommand, monitor::MonitorArgs},
    failure::Failure,
    output::{Format, Output, colour_on_stdout},
};
use crate::explain::{self, ExplainError, request::Request};
use crate::inspect::{
    InspectError,
    affinity::{self, AffinityMaps},
    backends,
    conntrack::{self, Flows},
    counters,
    jiffies::Jiffies,
    links, maps,
    pins::Pins,
    programs,
    services::{self, ServiceMaps},
    status::{self, StatusMaps},
};
use crate::monitor;

type Done = Result<(), Failure>;

pub fn service(pins: &Pins, output: &Output, command: &ServiceCommand) -> Done {
    let views = ServiceMaps::read(pins)?.views();
    match command {
        ServiceCommand::List => output.print_view(&views, |out| {
            services::print::print_services_into(out, &views, output.headers, output.wide())
        }),
        ServiceCommand::Show { service } => {
            let views = services::only(views, service)?;
            output.print_view(&views, |out| services::print::print_service_into(out, &views))
        }
    }
}

pub fn backends(pins: &Pins, output: &Output) -> Done {
    let views = backends::views(&ServiceMaps::read(pins)?);
    output.print_view(&views, |out| backends::print_backends_into(out, &views, output.headers))
}

pub fn conntrack(pins: &Pins, output: &Output, command: &ConntrackCommand) -> Done {
    let flows = Flows::read(pins)?;
    let (ConntrackCommand::List { service, .. } | ConntrackCommand::Flush { service }) = command;
    if let Some(name) = service
        && flows.ids_of(name)?.is_empty()
    {
        eprintln!("note: no Service {name:?} in the maps, so it has no flows");
    }
    match command {
        ConntrackCommand::List { service, halves } => {
            let views = flows.views(service.as_deref(), *halves, clock()?)?;
            output.print_view(&views, |out| {
                conntrack::print_flows_into(out, &views, output.headers, output.wide())
            })
        }
        ConntrackCommand::Flush { service } => {
            let count = conntrack::flush(pins, &flows, service.as_deref())?;
            let plural = if count == 1 { "" } else { "s" };
            output.print_view(&[serde_json::json!({ "flushed": count })], |out| {
                writeln!(out, "{count} flow{plural} deleted")
            })
        }
    }
}

pub fn affinity(pins: &Pins, output: &Output) -> Done {
    let views = AffinityMaps::read(pins)?.views(clock()?);
    output.print_view(&views, |out| affinity::print_affinity_into(out, &views, output.headers))
}

pub fn counters(pins: &Pins, output: &Output) -> Done {
    let views = counters::read(pins)?;
    output.print_view(&views, |out| counters::print_counters_into(out, &views, output.headers, output.wide()))
}

pub fn explain(pins: &Pins, output: &Output, args: &ExplainArgs) -> Done {
    let request = Request::parse(&args.source, &args.destination, args.from.as_deref())
        .map_err(ExplainError::Request)?;
    let view = explain::explain(pins, &request)?;
    output.print_view(&view, |out| explain::view::print_explanation_into(out, &view))
}

pub fn monitor(pins: &Pins, output: &Output, args: MonitorArgs) -> Done {
    let (wide, colour) = (output.wide(), colour_on_stdout());
    monitor::watch(pins, &args.options()?, |view, out| {
        if output.format == Format::Yaml {
            writeln!(out, "---")?;
        }
        if output.print_data_into(out, view)? {
            return Ok(());
        }
        monitor::view::print_event_into(out, view, wide, colour)
    })?;
    Ok(())
}

pub fn programs(pins: &Pins, output: &Output) -> Done {
    let views = programs::list(pins)?;
    output.print_view(&views, |out| programs::print_programs_into(out, &views, output.headers))
}

pub fn links(pins: &Pins, output: &Output) -> Done {
    let views = links::list(pins)?;
    output.print_view(&views, |out| links::print_links_into(out, &views, output.headers))
}

pub fn map(pins: &Pins, output: &Output, command: &MapCommand) -> Done {
    match command {
        MapCommand::List => {
            let views = maps::list(pins)?;
            output.print_view(&views, |out| maps::print_maps_into(out, &views, output.headers))
        }
        MapCommand::Dump { words, all } => {
            let (elements, left_out) = maps::dump(pins, words, *all)?;
            output.print_view(&elements, |out| maps::print_dump_into(out, &elements, left_out))
        }
        MapCommand::Lookup { words } => {
            let element = maps::lookup(pins, words)?;
            output.print_view(&element, |out| maps::print_element_into(out, &element))
        }
    }
}

pub fn status(pins: &Pins, output: &Output) -> Done {
    let view = StatusMaps::read(pins)?.view(status::unix_now());
    output.print_view(&[&view], |out| status::print_status_into(out, &view))
}

pub fn version(output: &Output) -> Done {
    let (version, schema) = (env!("CARGO_PKG_VERSION"), proxy_common::SCHEMA);
    output.print_view(&[serde_json::json!({ "version": version, "schema": schema })], |out| {
        writeln!(out, "shunt {version} (map contract v{schema})")
    })
}

fn clock() -> Result<Jiffies, InspectError> {
    Jiffies::read().map_err(InspectError::Clock)
}
