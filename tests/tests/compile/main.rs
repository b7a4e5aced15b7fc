//! Golden scenarios of the config line: manifests in, the tables of `shunt compile` out.
//!
//! `tests/golden/NAME.yaml` (or the directory `NAME`) is compiled for node `n1`, or the node of a line `# node: X`,
//! with the flags of a line `# flags: ...`, and compared with `NAME.out`; `UPDATE=1` rewrites those files. The
//! invariants of all manifests are then checked with each scenario.

mod changes;
mod invariants;
mod random;
mod scenario;

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result};

use self::scenario::{Scenario, golden};

macro_rules! scenarios {
    ($($name:ident)*) => {
        const SCENARIOS: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() -> Result<()> {
                check(stringify!($name))
            }
        )*
    };
}

scenarios! {
    absent_conditions affinity affinity_sets bad_endpoints bad_objects claims cluster_ip detect_local_bridge
    detect_local_cluster_cidr detect_local_node_cidr detect_local_prefix drop_or_refuse dual_stack dump
    duplicate_endpoints endpoints external_ips_off external_local external_name filtered_by_label
    health_check hints hints_all_or_nothing internal_local load_balancer load_balancer_ip_mode no_endpoints
    node_port_zero nodeport_addresses_primary nodeport_addresses_ranges nodeport_source_ranges not_served other_node protocol_twins
    publish_not_ready scheduler_random sctp several_slices shared_backends slices_of_others source_ranges
    terminating two_files vip_is_a_node_address
}

/// Compares the tables with the golden ones, then checks the invariants.
fn check(name: &'static str) -> Result<()> {
    let scenario = Scenario::new(name)?;
    let offline = scenario.compile()?;
    scenario.compare(&offline)?;
    invariants::check(&scenario, &offline).with_context(|| format!("scenario {name}"))
}

/// A golden file that is not listed would never be tested.
#[test]
fn every_golden_file_is_a_scenario() -> Result<()> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(golden())? {
        let path = entry?.path();
        found.insert(path.file_stem().and_then(|stem| stem.to_str()).context("a name in UTF-8")?.to_owned());
    }
    assert_eq!(found, SCENARIOS.iter().map(|name| (*name).to_owned()).collect());
    Ok(())
}
