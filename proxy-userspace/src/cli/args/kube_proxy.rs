//! kube-proxy's own flags, so that its command line works with shunt: flags that shunt implements, and flags that it
//! accepts, ignores and logs.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueHint, parser::ValueSource};

use super::values::go_bool;

/// kube-proxy's flags that have no other name in shunt.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "kube-proxy's flags")]
pub struct KubeProxyArgs {
    /// Print the version and exit
    #[arg(long = "version", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = version_flag)]
    pub show_version: Option<bool>,
    /// Remove shunt's state from the kernel and exit, like `shunt cleanup`
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub cleanup: Option<bool>,
    /// Write the resulting configuration to a file, as a KubeProxyConfiguration, and exit
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub write_config_to: Option<PathBuf>,
    /// Validate the configuration and exit: shunt needs no privileged initialization
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub init_only: Option<bool>,
    /// iptables, ipvs or nftables: selects which of --iptables-* and --ipvs-* take effect; nftables also changes the
    /// default of --nodeport-addresses to `primary`
    #[arg(long, value_name = "MODE", value_parser = ["", "iptables", "ipvs", "nftables"], hide_possible_values = true)]
    pub proxy_mode: Option<String>,
    /// Primary address of the node [default: the Node's InternalIP]
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<String>,
    /// Exit if a listener cannot bind its address
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub bind_address_hard_fail: Option<bool>,
    /// Feature gates; all but AllowServiceExternalIPs are ignored
    #[arg(long, value_name = "NAME=BOOL,...", value_parser = feature_gates)]
    pub feature_gates: Vec<FeatureGates>,
    /// oom_score_adj of this process [default: -999]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub oom_score_adj: Option<i32>,
    /// Maximum number of flows per CPU; --conntrack-max takes precedence; 0 selects the default size
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub conntrack_max_per_core: Option<i32>,
    /// Lower bound for the flows that --conntrack-max-per-core allows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub conntrack_min: Option<i32>,
    /// Interval between full resyncs [default: 60s]
    #[arg(long, value_name = "DURATION")]
    pub iptables_sync_period: Option<String>,
    /// Minimum interval between two syncs of the maps [default: 20ms]
    #[arg(long, value_name = "DURATION")]
    pub iptables_min_sync_period: Option<String>,
    /// Like --iptables-sync-period, with --proxy-mode ipvs
    #[arg(long, value_name = "DURATION")]
    pub ipvs_sync_period: Option<String>,
    /// Like --iptables-min-sync-period, with --proxy-mode ipvs
    #[arg(long, value_name = "DURATION")]
    pub ipvs_min_sync_period: Option<String>,
    /// Serve NodePorts on 127.0.0.1 [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub iptables_localhost_nodeports: Option<bool>,
    /// Port for --healthz-bind-address if that contains none; 0 disables the listener
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<u16>,
    /// Port for --metrics-bind-address if that contains none; 0 disables the listener
    #[arg(long, value_name = "PORT")]
    pub metrics_port: Option<u16>,
    /// Log level: 4 for debug, 5 for trace; $SHUNT_LOG takes precedence
    #[arg(short = 'v', long = "v", value_name = "LEVEL")]
    pub verbosity: Option<u8>,
    #[command(flatten)]
    pub ignored: IgnoredArgs,
}

/// The value of one `--feature-gates`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureGates(pub Vec<(String, bool)>);

impl KubeProxyArgs {
    /// All feature gates, in the order of the command line.
    pub fn gates(&self) -> impl Iterator<Item = &(String, bool)> {
        self.feature_gates.iter().flat_map(|gates| &gates.0)
    }
}

/// Ignored flags: they configure what shunt does not have (netfilter, ipvs, klog, profiling).
const IGNORED: [&str; 22] = [
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

/// Ignored boolean flags: without a value, or with `=BOOL`.
const IGNORED_SWITCHES: [&str; 11] = [
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

/// The ignored flags that were given, with their dashes, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IgnoredArgs {
    pub given: Vec<String>,
}

impl Args for IgnoredArgs {
    fn augment_args(command: Command) -> Command {
        let arg = |name: &'static str| {
            let help = "Accepted and ignored";
            Arg::new(name)
                .long(name)
                .help(help)
                .hide_short_help(true)
                .hide_default_value(true)
                .action(ArgAction::Append)
        };
        let switches = IGNORED_SWITCHES.iter().map(|name| {
            arg(name)
                .value_name("BOOL")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(go_bool)
        });
        let with_value = IGNORED.iter().map(|name| arg(name).value_name("VALUE").allow_hyphen_values(true));
        command.next_help_heading("kube-proxy's flags that are ignored").args(with_value).args(switches)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for IgnoredArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let names = IGNORED.iter().chain(&IGNORED_SWITCHES);
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

/// `--version=raw` selects kube-proxy's output format; here it only asks for the version.
fn version_flag(text: &str) -> Result<bool, String> {
    if text == "raw" { Ok(true) } else { go_bool(text) }
}

/// `NAME=BOOL` separated by commas. As in kube-proxy, an empty item is skipped.
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
    use crate::cli::args::{Cli, Command as Subcommand, policy::DetectLocalArg, run::RunArgs};

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
    fn the_last_occurrence_of_a_flag_takes_effect() {
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
        assert_eq!(args.policy.detect_local_mode, Some(DetectLocalArg::Unset));
    }

    #[test]
    fn list_flags_accumulate() {
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
        assert_eq!(args.kube_proxy.ignored.given, ["--kube-api-qps", "--profiling"]);
    }

    #[test]
    fn version_flag_values() {
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
    fn kube_proxy_command_lines_are_accepted() {
        let args = parse(
            "--config=/var/lib/kube-proxy/config.conf --hostname-override=node-1 --v=2 --kube-api-qps=50 --profiling \
             --ipvs-strict-arp=true --logtostderr=true --conntrack-tcp-be-liberal --stderrthreshold -1",
        );
        assert_eq!(args.node_name.as_deref(), Some("node-1"));
        assert_eq!(args.kube_proxy.verbosity, Some(2));
        assert_eq!(
            args.kube_proxy.ignored.given,
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
        assert_eq!(parse("").kube_proxy.ignored, IgnoredArgs::default());
    }

    #[test]
    fn a_rejected_value_names_its_flag() {
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
    fn the_short_help_hides_ignored_flags() {
        let mut command = Cli::command();
        let run = command.find_subcommand_mut("run").unwrap();
        let (short, long) = (run.render_help().to_string(), run.render_long_help().to_string());
        assert!(!short.contains("kube-api-qps") && long.contains("--kube-api-qps"));
        assert!(short.contains("--write-config-to") && short.contains("hostname-override"));
    }
}
