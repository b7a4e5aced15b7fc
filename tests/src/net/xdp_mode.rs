//! The lane of outside traffic (`--xdp`) that a cluster's nodes are started in, and the wires it needs.
//!
//! A veth hands over packets whose checksums nobody has computed, and takes frames from an XDP program only where its
//! peer polls. A network card's wire does neither: with transmit offloads off, what is on the cable is whole; with GRO
//! on at the switch's end, that end polls.

use std::{env, fmt};

use anyhow::Result;

use super::Netns;

/// Runs every test of the network suite in a lane: `native` or `generic`.
pub const VARIABLE: &str = "SHUNT_TEST_XDP";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Native,
    Generic,
}

impl Lane {
    pub const BOTH: [Self; 2] = [Self::Native, Self::Generic];

    /// The lane that the environment asks for.
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

/// Makes the cable between `port` of the switch and `eth0` of a machine a wire.
pub fn wire(switch: &Netns, port: &str, machine: &Netns) -> Result<()> {
    switch.run(&["ethtool", "-K", port, "tx", "off", "gro", "on"])?;
    machine.run(&["ethtool", "-K", "eth0", "tx", "off"])?;
    Ok(())
}
