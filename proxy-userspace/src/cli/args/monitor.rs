//! Flags of `shunt monitor`. Each is parsed to its final type, so that clap rejects a wrong word and lists the valid ones.

use std::{net::IpAddr, time::Duration};

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use ipnet::IpNet;
use proxy_common::{Counter, EventKind, Hook, counter::Kind};

use super::values::{is_device_glob, service_name};
use crate::{
    cli::usage_error::UsageError,
    kube_proxy_config::duration::{self, EXPECTED_DURATION},
    monitor::{
        Options,
        filter::{Filter, Protocol},
    },
};

/// Repeated values of one flag are alternatives; different flags must all match.
#[derive(Args, Clone, Debug)]
pub struct MonitorArgs {
    /// Only events of this kind (repeatable)
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',', ignore_case = true, value_parser = one_of(EventKind::ALL, EventKind::name))]
    pub kinds: Vec<EventKind>,
    /// Only events of this Service
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service_name)]
    pub service: Option<String>,
    /// Only events with a matching client, VIP or backend address (repeatable)
    #[arg(long = "address", value_name = "ADDRESS|CIDR", value_delimiter = ',', value_parser = address)]
    pub addresses: Vec<IpNet>,
    /// Only events with this client, VIP or backend port (repeatable)
    #[arg(long = "port", value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,
    /// Only events of this protocol (repeatable)
    #[arg(long = "protocol", value_name = "PROTOCOL", value_delimiter = ',', ignore_case = true, value_parser = one_of(Protocol::ALL, Protocol::name))]
    pub protocols: Vec<Protocol>,
    /// Only events on devices with matching names (repeatable); events of sockets have no device
    #[arg(long = "device", value_name = "GLOB", value_delimiter = ',', value_parser = device_glob)]
    pub devices: Vec<String>,
    /// Only refusals and drops with this reason, a name of `shunt counter list` (repeatable)
    #[arg(long = "reason", value_name = "NAME", value_delimiter = ',', ignore_case = true, hide_possible_values = true, value_parser = one_of(REASONS, Counter::name))]
    pub reasons: Vec<Counter>,
    /// Only events of this hook (repeatable)
    #[arg(long = "hook", value_name = "HOOK", value_delimiter = ',', ignore_case = true, value_parser = one_of(Hook::ALL, Hook::name))]
    pub hooks: Vec<Hook>,
    /// Sample one event in N, at random, in the datapath
    #[arg(long = "sample", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub one_in: u32,
    /// Exit after N events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Exit after this time, such as 30s or 10m
    #[arg(long, value_name = "DURATION", value_parser = time)]
    pub duration: Option<Duration>,
}

const fn is_reason(counter: Counter) -> bool {
    !matches!(counter.kind(), Kind::Event)
}

/// Every reason for a refusal or a drop.
const REASONS: &[Counter] = &{
    const COUNT: usize = {
        let (mut count, mut at) = (0, 0);
        while at < Counter::ALL.len() {
            count += is_reason(Counter::ALL[at]) as usize;
            at += 1;
        }
        count
    };
    let (mut reasons, mut count, mut at) = ([Counter::NoBackend; COUNT], 0, 0);
    while at < Counter::ALL.len() {
        if is_reason(Counter::ALL[at]) {
            reasons[count] = Counter::ALL[at];
            count += 1;
        }
        at += 1;
    }
    reasons
};

impl MonitorArgs {
    /// The options of the command; rejects combinations that match nothing.
    pub fn options(self) -> Result<Options, UsageError> {
        let filter = Filter {
            kinds: self.kinds,
            service: self.service,
            addresses: self.addresses,
            ports: self.ports,
            protocols: self.protocols,
            devices: self.devices,
            reasons: self.reasons,
            hooks: self.hooks,
        };
        if let (0, Some(reason)) = (filter.kinds(), filter.reasons.first()) {
            return Err(UsageError::BadValue {
                flag: "--reason",
                value: reason.name().to_owned(),
                expected: "a reason of a flow event; combine --reason with --kind refused or dropped",
            });
        }
        Ok(Options { filter, one_in: self.one_in, count: self.count, duration: self.duration })
    }
}

/// One of `all` by its name; clap rejects any other word and lists the names.
fn one_of<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.iter().map(|one| name(*one))).try_map(move |word| {
        let found = all.iter().find(|one| name(**one).eq_ignore_ascii_case(&word));
        found.copied().ok_or_else(|| format!("{word:?} is none of these"))
    })
}

fn address(text: &str) -> Result<IpNet, String> {
    let alone = |ip: IpAddr| IpNet::from(ip.to_canonical());
    let net = text.trim_matches(['[', ']']).parse::<IpAddr>().map(alone).or_else(|_| text.parse::<IpNet>());
    net.map(|net| net.trunc())
        .map_err(|_| "not an address or an address range such as 10.244.0.0/16 or fd00:10::/56".to_owned())
}

fn device_glob(text: &str) -> Result<String, String> {
    if is_device_glob(text) {
        return Ok(text.to_owned());
    }
    Err("not a glob of device names such as eth* or veth?".to_owned())
}

fn time(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text.trim()).filter(|time| !time.is_zero());
    time.ok_or_else(|| format!("not {EXPECTED_DURATION}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: MonitorArgs,
    }

    fn parse(words: &[&str]) -> Result<MonitorArgs, clap::Error> {
        Line::try_parse_from([&["monitor"], words].concat()).map(|line| line.args)
    }

    #[test]
    fn words_are_parsed_to_values() {
        let args = parse(&[
            "--kind",
            "refused,Dropped",
            "--address",
            "10.0.0.7/8",
            "--address",
            "fd00::1",
            "--port",
            "80",
            "--protocol",
            "TCP,icmp",
            "--device",
            "eth*",
            "--reason",
            "no_backend",
            "--hook",
            "xdp",
            "--sample",
            "10",
            "--count",
            "5",
            "--duration",
            "1m30s",
            "--service",
            "default/web",
        ]);
        let options = args.unwrap().options().unwrap();
        assert_eq!(options.filter.kinds, [EventKind::Refused, EventKind::Dropped]);
        assert_eq!(options.filter.protocols, [Protocol::Tcp, Protocol::Icmp]);
        assert_eq!(
            (&*options.filter.reasons, &*options.filter.hooks),
            (&[Counter::NoBackend][..], &[Hook::Xdp][..])
        );
        let addresses: Vec<_> = options.filter.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.0/8", "fd00::1/128"]);
        assert_eq!((options.one_in, options.count), (10, Some(5)));
        assert_eq!(options.duration, Some(Duration::from_secs(90)));
        let everything = parse(&[]).unwrap().options().unwrap();
        assert_eq!((everything.one_in, everything.count, everything.duration), (1, None, None));
    }

    #[test]
    fn a_wrong_word_is_rejected_with_the_valid_ones() {
        for (words, right) in [
            (["--kind", "lost"], "flow, refused, dropped"),
            (["--protocol", "quic"], "tcp, udp, sctp, icmp"),
            (["--hook", "tc"], "ingress, egress, xdp, socket"),
            (["--reason", "flow_new"], "no_local_endpoints"),
            (["--address", "10.0.0"], "10.244.0.0/16"),
            (["--port", "0"], "1..=65535"),
            (["--device", "a/b"], "eth*"),
            (["--sample", "0"], "--sample"),
            (["--count", "0"], "--count"),
            (["--duration", "0"], "30s"),
            (["--duration", "soon"], "30s"),
            (["--service", "web"], "NAMESPACE/NAME"),
        ] {
            let error = parse(&words).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(right), "{words:?}: {error}");
        }
        let error = parse(&["--kind", "flow", "--reason", "src_range"]).unwrap().options().unwrap_err();
        assert!(error.to_string().contains("src_range") && error.to_string().contains("dropped"), "{error}");
    }
}
