//! The XDP mode for outside traffic (`--xdp`) of a cluster's nodes, and the cables it needs.
//!
//! A veth passes on packets whose checksums have not been computed, and accepts frames from an XDP program only if its
//! peer polls. A wire between network cards has neither property. So transmit offloads are off, which makes checksums
//! on the cable complete, and GRO is on at the switch's end, which makes that end poll.

use std::{env, fmt};

use anyhow::Result;

use super::Netns;

/// Runs every test of the network suite in this XDP mode: `native` or `generic`.
pub const VARIABLE: &str = "SHUNT_TEST_XDP";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Native,
    Generic,
}

impl Lane {
    pub const BOTH: [Self; 2] = [Self::Native, Self::Generic];

    /// The mode set in the environment.
    pub fn of_environment() -> Option<Self> {
        let word = env::var(VARIABLE).unwrap_or_default();
        match word.as_str() {
            "" | "off" => None,
            word => {
                let named = |lane: &Self| lane.to_string() == word;
                let lane = Self::BOTH.into_iter().find(named);
                Some(lane.unwrap_or_else(|| panic!("{VARIABLE}={word}: must be off, native or generic")))
            }
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// Makes the cable between `port` of the switch and `eth0` of a machine behave like a wire.
pub fn wire(switch: &Netns, port: &str, machine: &Netns) -> Result<()> {
    switch.run(&["ethtool", "-K", port, "tx", "off", "gro", "on"])?;
    machine.run(&["ethtool", "-K", "eth0", "tx", "off"])?;
    Ok(())
}
