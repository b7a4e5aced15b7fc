//! The verifier never sees the code for the trace of decisions (`--trace`) otherwise: with it, every program still
//! loads.

use anyhow::Result;
use tests::packet::Datapath;

/// Limit here; the verifier's limit is a million instructions.
const MOST: u32 = 500_000;

#[test]
fn every_program_loads_with_the_trace_on() -> Result<()> {
    let programs = Datapath::load_with(16, 1)?.verified()?;
    for name in ["ingress_l2", "egress_l3", "xdp_native", "xdp_soft"] {
        assert!(programs.iter().any(|(program, _)| program == name), "{name}: {programs:?}");
    }
    let long: Vec<_> = programs.iter().filter(|(_, walked)| *walked > MOST).collect();
    assert!(long.is_empty(), "{long:?} of {programs:?}");
    Ok(())
}
