//! `shunt run`: starts the agent, or does what kube-proxy's flags request instead (`--write-config-to`, `--init-only`,
//! `--version`, `--cleanup`).

use std::path::Path;

use super::{
    args::{CleanupArgs, Command, run::RunArgs},
    environment::Environment,
    failure::Failure,
    resolve::{run_config, written_config},
    usage_error::UsageError,
};
use crate::{agent, config::Config, kube_proxy_config, sources::Source};

/// Replaces `run --version` and `run --cleanup` by the command of that name.
pub fn standalone(command: Command) -> Command {
    match command {
        Command::Run(args) if args.kube_proxy.show_version == Some(true) => Command::Version,
        Command::Run(args) if args.kube_proxy.cleanup == Some(true) => {
            Command::Cleanup(CleanupArgs::default())
        }
        other => other,
    }
}

pub fn run(args: RunArgs, bpffs: &Path) -> Result<(), Failure> {
    let environment = Environment::detect();
    // As in kube-proxy, a configuration is written without access to the node.
    if let Some(path) = &args.kube_proxy.write_config_to {
        let config = written_config(&args, bpffs, &environment)?;
        print_notes(&config);
        let written = kube_proxy_config::write(path, &config.kube_proxy);
        return written.map_err(|source| {
            UsageError::WriteConfigTo { path: path.clone(), why: source.to_string() }.into()
        });
    }
    let config = run_config(&args, bpffs, &environment)?;
    if args.kube_proxy.init_only == Some(true) {
        print_notes(&config);
        eprintln!(
            "--init-only: the configuration is valid; shunt needs no initialization with further privileges"
        );
        return Ok(());
    }
    let bpffs = bpffs.to_owned();
    Ok(agent::run(config, Box::new(move || dry_run(&args, &bpffs)))?)
}

/// Whether an agent with this command line would start now: resolves the whole command line and reads the kubeconfig,
/// without side effects. Needs a tokio runtime.
fn dry_run(args: &RunArgs, bpffs: &Path) -> Result<(), String> {
    let config = run_config(args, bpffs, &Environment::detect()).map_err(|error| error.to_string())?;
    Source::open(&config.source, &config.node_name).map(drop).map_err(|error| error.to_string())
}

/// The agent logs the notes; without an agent they go to stderr.
fn print_notes(config: &Config) {
    config.notes.iter().for_each(|note| eprintln!("{note}"));
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser as _;

    use super::*;
    use crate::cli::args::Cli;

    #[tokio::test]
    async fn a_dry_run_rejects_what_a_start_rejects() {
        let dir = std::env::temp_dir().join(format!("shunt-dry-run-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (file, kubeconfig) = (dir.join("config.conf"), dir.join("kubeconfig"));
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
             clientConnection: {{kubeconfig: {}}}\n",
            kubeconfig.display()
        );
        fs::write(&file, &text).unwrap();
        let line = format!("shunt run --socket-lb off --node-name n --config {}", file.display());
        let Command::Run(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!("not run")
        };
        let check = || dry_run(&args, Path::new("/b"));
        let error = check().unwrap_err();
        assert!(error.contains("clientConnection.kubeconfig") && error.contains("No such file"), "{error}");
        fs::write(&kubeconfig, "apiVersion: v1\nkind: Config\n").unwrap();
        let error = check().unwrap_err();
        assert!(error.contains("names no cluster"), "{error}");
        let good = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                    contexts: [{name: c, context: {cluster: c, user: u}}]\n\
                    clusters: [{name: c, cluster: {server: 'https://192.168.8.201:6443'}}]\n\
                    users: [{name: u, user: {token: t}}]\n";
        fs::write(&kubeconfig, good).unwrap();
        assert_eq!(check(), Ok(()));
        fs::write(&file, format!("{text}detectLocalMode: BridgeInterface\n")).unwrap();
        assert!(check().is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
