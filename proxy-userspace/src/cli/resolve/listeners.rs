//! Addresses of the health and metrics listeners.

use std::net::{IpAddr, SocketAddr};

use crate::cli::{
    args::{kube_proxy::KubeProxyArgs, run::RunArgs},
    usage_error::UsageError,
};

/// kube-proxy's default ports.
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

pub(super) fn healthz(args: &RunArgs, flags: &KubeProxyArgs) -> Result<Option<SocketAddr>, UsageError> {
    listener(
        "--healthz-bind-address",
        args.healthz_bind_address.as_deref().unwrap_or("0.0.0.0"),
        flags.healthz_port.unwrap_or(HEALTHZ_PORT),
    )
}

pub(super) fn metrics(args: &RunArgs, flags: &KubeProxyArgs) -> Result<Option<SocketAddr>, UsageError> {
    listener(
        "--metrics-bind-address",
        args.metrics_bind_address.as_deref().unwrap_or("127.0.0.1"),
        flags.metrics_port.unwrap_or(METRICS_PORT),
    )
}

/// As in kube-proxy, port 0 disables a listener whose address contains no port.
fn listener(flag: &'static str, given: &str, port: u16) -> Result<Option<SocketAddr>, UsageError> {
    let addr = address(flag, given, port)?;
    Ok(addr.filter(|addr| port != 0 || addr.port() != 0))
}

/// `IP:PORT`, `[IPv6]:PORT`, or an address with the default port. An empty text disables the listener.
fn address(flag: &'static str, given: &str, port: u16) -> Result<Option<SocketAddr>, UsageError> {
    if given.is_empty() {
        return Ok(None);
    }
    let alone = || given.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
    given.parse().or_else(|_| alone()).map(Some).map_err(|_| UsageError::BadValue {
        flag,
        value: given.to_owned(),
        expected: "an address such as 0.0.0.0:10256 or [::]:10256",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_takes_the_default_port() {
        assert_eq!(address("--x", "::1", 7), Ok("[::1]:7".parse().ok()));
        assert_eq!(address("--x", "127.0.0.1", 7), Ok("127.0.0.1:7".parse().ok()));
    }
}
