//! kube-proxy's own flags, so that its command line can be given to shunt: those that do something here, and those
//! that are taken and reported.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueHint, parser::ValueSource};

/// kube-proxy's flags that shunt has no other name for.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "kube-proxy's flags")]
pub struct KubeProxyArgs {
    /// Print the version and exit
    #[arg(long = "version", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = asks_for_version)]
    pub show_version: Option<bool>,
    /// Remove what shunt has put into the kernel and exit, as `shunt cleanup`
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub cleanup: Option<bool>,
    /// Write the configuration that these flags and --config amount to, as a KubeProxyConfiguration, and exit
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub write_config_to: Option<PathBuf>,
    /// Look whether the configuration is good and exit: nothing needs more privileges at the start than later
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub init_only: Option<bool>,
    /// iptables, ipvs or nftables: says which of --iptables-* and --ipvs-* count; with nftables, the default of
    /// --nodeport-addresses is `primary`
    #[arg(long, value_name = "MODE", value_parser = ["", "iptables", "ipvs", "nftables"], hide_possible_values = true)]
    pub proxy_mode: Option<String>,
    /// The node's primary address [default: the Node's InternalIP]
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<String>,
    /// End where the address of a listener cannot be had
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub bind_address_hard_fail: Option<bool>,
    /// Feature gates; AllowServiceExternalIPs means something here
    #[arg(long, value_name = "NAME=BOOL,...", value_parser = feature_gates)]
    pub feature_gates: Vec<FeatureGates>,
    /// The kernel's inclination to end this process when memory is short [default: -999]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub oom_score_adj: Option<i32>,
    /// Flows for each CPU; --conntrack-max goes before it; 0 leaves it at its default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub conntrack_max_per_core: Option<i32>,
    /// Flows, however few CPUs there are
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub conntrack_min: Option<i32>,
    /// How often to put right what somebody else has changed [default: 60s]
    #[arg(long, value_name = "DURATION")]
    pub iptables_sync_period: Option<String>,
    /// Between two writes of the maps [default: 20ms]
    #[arg(long, value_name = "DURATION")]
    pub iptables_min_sync_period: Option<String>,
    /// The same, with --proxy-mode ipvs
    #[arg(long, value_name = "DURATION")]
    pub ipvs_sync_period: Option<String>,
    /// The same, with --proxy-mode ipvs
    #[arg(long, value_name = "DURATION")]
    pub ipvs_min_sync_period: Option<String>,
    /// Serve NodePorts at 127.0.0.1 [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub iptables_localhost_nodeports: Option<bool>,
    /// The port of --healthz-bind-address where that has none; 0 turns it off
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<u16>,
    /// The port of --metrics-bind-address where that has none; 0 turns it off
    #[arg(long, value_name = "PORT")]
    pub metrics_port: Option<u16>,
    /// How much to log: 4 what shunt does, 5 every step; $SHUNT_LOG goes before it
    #[arg(short = 'v', long = "v", value_name = "LEVEL")]
    pub verbosity: Option<u8>,
    #[command(flatten)]
    pub silent: SilentArgs,
}

/// The gates of one `--feature-gates`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureGates(pub Vec<(String, bool)>);

impl KubeProxyArgs {
    /// All gates, in the order in which they were given.
    pub fn gates(&self) -> impl Iterator<Item = &(String, bool)> {
        self.feature_gates.iter().flat_map(|gates| &gates.0)
    }
}

/// Flags that are taken and mean nothing: they configure what shunt does not have (netfilter, ipvs, klog, profiling).
const SILENT: [&str; 22] = [
    "config-sync-period",
    "ipvs-exclude-cidrs",
    "ipvs-scheduler",
    "ipvs-tcp-timeout",
    "ipvs-tcpfin-timeout",
    "ipvs-udp-timeout",
    "iptables-masquerade-bit",
    "kube-api-burst",
    "kube-api-content-type",
    "kube-api-qps",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-text-info-buffer-size",
    "log_backtrace_at",
    "log_dir",
    "log_file",
    "log_file_max_size",
    "logging-format",
    "proxy-port-range",
    "show-hidden-metrics-for-version",
    "stderrthreshold",
    "vmodule",
];

/// The same, without a value or with `=BOOL`.
const SILENT_SWITCHES: [&str; 11] = [
    "add_dir_header",
    "alsologtostderr",
    "conntrack-tcp-be-liberal",
    "ipvs-strict-arp",
    "log-json-split-stream",
    "log-text-split-stream",
    "logtostderr",
    "one_output",
    "profiling",
    "skip_headers",
    "skip_log_headers",
];

/// Which of them were given, with their dashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SilentArgs {
    pub given: Vec<String>,
}

impl Args for SilentArgs {
    fn augment_args(command: Command) -> Command {
        let arg = |name: &'static str| {
            let help = "Accepted, without a meaning here";
            Arg::new(name)
                .long(name)
                .help(help)
                .hide_short_help(true)
                .hide_default_value(true)
                .action(ArgAction::Append)
        };
        let switches = SILENT_SWITCHES.iter().map(|name| {
            arg(name)
                .value_name("BOOL")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(go_bool)
        });
        let with_value = SILENT.iter().map(|name| arg(name).value_name("VALUE").allow_hyphen_values(true));
        command.next_help_heading("kube-proxy's flags that mean nothing here").args(with_value).args(switches)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SilentArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let names = SILENT.iter().chain(&SILENT_SWITCHES);
        let given = names.filter(|name| matches.value_source(name) == Some(ValueSource::CommandLine));
        let mut given: Vec<String> = given.map(|name| format!("--{name}")).collect();
        given.sort();
        Ok(Self { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// As Go's strconv.ParseBool.
pub fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("give true or false".to_owned()),
    }
}

/// kube-proxy's `--version=raw` is about how it is written.
fn asks_for_version(text: &str) -> Result<bool, String> {
    if text == "raw" { Ok(true) } else { go_bool(text) }
}

/// As kube-proxy's: nothing between commas, or after the last, is no gate.
fn feature_gates(text: &str) -> Result<FeatureGates, String> {
    let gate = |text: &str| {
        let (name, value) = text.split_once('=').ok_or("write it as NAME=true or NAME=false")?;
        Ok((name.trim().to_owned(), go_bool(value.trim())?))
    };
    text.split(',')
        .filter(|gate| !gate.trim().is_empty())
        .map(gate)
        .collect::<Result<_, _>>()
        .map(FeatureGates)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::args::{Cli, Command as Subcommand, RunArgs};

    fn parse(line: &str) -> RunArgs {
        let cli = Cli::try_parse_from(["shunt", "run"].into_iter().chain(line.split_whitespace()));
        let Subcommand::Run(args) = cli.unwrap_or_else(|error| panic!("{line}: {error}")).command else {
            panic!("not run")
        };
        *args
    }

    fn gates(args: &RunArgs) -> String {
        let gates = args.kube_proxy.gates().map(|(name, value)| format!("{name}={value}"));
        gates.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn of_a_flag_that_is_given_again_the_last_counts() {
        let args = parse(
            "--v=2 --v=3 -v 4 --config=a --config=b --kubeconfig a --kubeconfig= --masquerade-all --masquerade-all=false \
             --proxy-mode=ipvs --proxy-mode= --cleanup --cleanup=false --cluster-cidr=10.0.0.0/8 \
             --cluster-cidr=10.1.0.0/16,fd00::/64 --hostname-override=a --node-name=b --conntrack-max 2000 \
             --conntrack-max 3000 --trace --trace --detect-local-mode=NodeCIDR --detect-local-mode=",
        );
        assert_eq!((args.kube_proxy.verbosity, args.config), (Some(4), Some("b".into())));
        assert_eq!((args.kubeconfig, args.policy.masquerade_all), (Some("".into()), Some(false)));
        assert_eq!((args.kube_proxy.proxy_mode, args.kube_proxy.cleanup), (Some(String::new()), Some(false)));
        assert_eq!(args.policy.cluster_cidr, ["10.1.0.0/16", "fd00::/64"]);
        assert_eq!((args.node_name.as_deref(), args.sizes.conntrack_max), (Some("b"), Some(3000)));
        assert_eq!(args.policy.detect_local_mode, Some(crate::cli::args::DetectLocalArg::Unsaid));
    }

    #[test]
    fn lists_go_on_where_their_flag_is_given_again() {
        let args = parse(
            "--device eth* --device veth* --exclude-device a --exclude-device b --server a,b --master c \
             --nodeport-addresses 10.0.0.0/8 --nodeport-addresses fd00::/8 --feature-gates A=true,B=false, \
             --feature-gates= --feature-gates=C=true --kube-api-qps 1 --kube-api-qps 2 --profiling --profiling=false",
        );
        assert_eq!(
            (args.devices.join(" "), args.exclude_devices.join(" ")),
            ("eth* veth*".into(), "a b".into())
        );
        assert_eq!(args.servers, ["a", "b", "c"]);
        assert_eq!(args.policy.nodeport_addresses, ["10.0.0.0/8", "fd00::/8"]);
        assert_eq!(gates(&args), "A=true B=false C=true");
        assert_eq!(args.kube_proxy.silent.given, ["--kube-api-qps", "--profiling"]);
    }

    #[test]
    fn the_version_may_be_asked_for() {
        for (line, want) in [
            ("--version", Some(true)),
            ("--version=raw", Some(true)),
            ("--version=true --v=2", Some(true)),
            ("--version=false", Some(false)),
            ("", None),
        ] {
            assert_eq!(parse(line).kube_proxy.show_version, want, "{line}");
        }
    }

    #[test]
    fn kube_proxys_command_lines_are_taken() {
        let args = parse(
            "--config=/var/lib/kube-proxy/config.conf --hostname-override=node-1 --v=2 --kube-api-qps=50 --profiling \
             --ipvs-strict-arp=true --logtostderr=true --conntrack-tcp-be-liberal --stderrthreshold -1",
        );
        assert_eq!(args.node_name.as_deref(), Some("node-1"));
        assert_eq!(args.kube_proxy.verbosity, Some(2));
        assert_eq!(
            args.kube_proxy.silent.given,
            [
                "--conntrack-tcp-be-liberal",
                "--ipvs-strict-arp",
                "--kube-api-qps",
                "--logtostderr",
                "--profiling",
                "--stderrthreshold"
            ]
        );
        let args = parse(
            "--master=https://a:6443 --proxy-mode=nftables --masquerade-all=false --cleanup --oom-score-adj -998 -v 4 \
             --feature-gates=AllowServiceExternalIPs=false,X=True --bind-address-hard-fail=T --conntrack-max-per-core=0",
        );
        assert_eq!(args.servers, ["https://a:6443"]);
        assert_eq!((args.policy.masquerade_all, args.kube_proxy.cleanup), (Some(false), Some(true)));
        assert_eq!((args.kube_proxy.oom_score_adj, args.kube_proxy.verbosity), (Some(-998), Some(4)));
        assert_eq!(gates(&args), "AllowServiceExternalIPs=false X=true");
        assert_eq!(args.kube_proxy.bind_address_hard_fail, Some(true));
        assert_eq!(parse("").kube_proxy.silent, SilentArgs::default());
    }

    #[test]
    fn wrong_values_name_the_flag() {
        for (flag, name) in [
            ("--proxy-mode=userspace", "--proxy-mode"),
            ("--oom-score-adj=2000", "--oom-score-adj"),
            ("--feature-gates=X", "NAME=true"),
            ("--masquerade-all=maybe", "true or false"),
            ("--conntrack-min=-1", "--conntrack-min"),
            ("--healthz-port=70000", "--healthz-port"),
        ] {
            let error = Cli::try_parse_from(["shunt", "run", flag]).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(name), "{flag}: {error}");
        }
    }

    #[test]
    fn the_short_help_is_about_what_does_something() {
        let mut command = Cli::command();
        let run = command.find_subcommand_mut("run").unwrap();
        let (short, long) = (run.render_help().to_string(), run.render_long_help().to_string());
        assert!(!short.contains("kube-api-qps") && long.contains("--kube-api-qps"));
        assert!(short.contains("--write-config-to") && short.contains("hostname-override"));
    }
}
