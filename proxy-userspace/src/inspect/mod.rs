//! What an operator sees of the datapath, read from the pinned maps: it works while the agent is down and
//! needs CAP_BPF alone. Each view is a plain struct built from plain entries (so tests build it in memory), and
//! each printer writes into an `impl Write`. Called by [`crate::cli`]; writes nothing but what `flush` deletes.

pub mod affinity;
pub mod backends;
pub mod contract;
pub mod counters;
pub mod drops;
pub mod flows;
pub mod jiffies;
pub mod links;
pub mod map_words;
pub mod maps;
pub mod pins;
pub mod programs;
pub mod services;
pub mod statistics;
pub mod status;
pub mod table;

use std::{io, path::PathBuf};

use proxy_common::{Addr, Port, Proto, SCHEMA};

/// Why something could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error(
        "no pinned maps in {}: either --bpffs names another directory than `shunt run` was given, or shunt has \
         not run since this node started, or no bpffs is mounted there",
        .0.display()
    )]
    NoPins(PathBuf),
    #[error("nothing is pinned at {}; `shunt map list` shows what is", .0.display())]
    NoSuchPin(PathBuf),
    #[error(
        "{} has keys of {} and values of {} bytes, and this shunt (map contract v{SCHEMA}) expects {} and {}: \
         it belongs to another program or another version; inspect it with the shunt that made it, or remove \
         that one's state with its `shunt cleanup`",
        path.display(), found.0, found.1, expected.0, expected.1
    )]
    Foreign { path: PathBuf, found: (u32, u32), expected: (u32, u32) },
    #[error("{action} {} was refused: it needs root, or CAP_BPF and the right to read the directory", path.display())]
    Refused { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{action} {} failed", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{map} holds no such key")]
    NoSuchKey { map: String },
    #[error("no Service {0:?} in the maps; `shunt service list` shows those that are")]
    NoSuchService(String),
    #[error("{0:?} is not of the form NAMESPACE/NAME")]
    BadServiceName(String),
    #[error(transparent)]
    Words(#[from] map_words::WordsError),
    #[error("reading the kernel's jiffies failed")]
    Clock(#[source] io::Error),
    #[error("listing {what} through netlink failed")]
    Netlink { what: &'static str, source: io::Error },
}

impl InspectError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Refused { action, path, source },
            _ => Self::Io { action, path, source },
        }
    }

    /// Whether the words on the command line are at fault, and not the machine.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::BadServiceName(_) | Self::Words(_))
    }
}

/// `ADDRESS:PORT`, an IPv6 address in brackets.
pub(crate) fn addr_port(addr: Addr, port: Port) -> String {
    std::net::SocketAddr::new(addr.to_ip(), port.host()).to_string()
}

/// A protocol's name, or its number in decimal.
pub(crate) fn proto_name(proto: u8) -> String {
    Proto::name(proto).map_or_else(|| proto.to_string(), str::to_owned)
}

pub(crate) fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_stands_in_brackets() {
        let v6: std::net::Ipv6Addr = "fd00::1".parse().unwrap();
        assert_eq!(addr_port(v6.into(), Port::new(80)), "[fd00::1]:80");
        assert_eq!(addr_port(Addr::UNSPECIFIED_V4, Port::new(30000)), "0.0.0.0:30000");
    }

    #[test]
    fn a_refusal_is_told_from_a_failure() {
        let refused = InspectError::io("opening", "/p", io::ErrorKind::PermissionDenied.into());
        assert!(refused.to_string().contains("CAP_BPF"), "{refused}");
        assert!(
            !InspectError::io("opening", "/p", io::ErrorKind::OutOfMemory.into())
                .to_string()
                .contains("CAP_BPF")
        );
    }
}
