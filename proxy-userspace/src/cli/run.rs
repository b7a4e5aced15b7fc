//! `shunt run`: the agent, or what kube-proxy's flags ask for in its place.

use std::path::{Path, PathBuf};

use super::{
    args::{CleanupArgs, Cli, Command, GlobalArgs, RunArgs},
    failure::Failure,
    resolve::{Surroundings, UsageError, run_config, written_config},
};
use crate::{agent, config::Config, kube_proxy_config, source::Source};

pub fn run(args: RunArgs, global: GlobalArgs) -> Result<(), Failure> {
    if args.kube_proxy.show_version == Some(true) {
        return super::run(Cli { global, command: Command::Version });
    }
    let around = Surroundings::of_this_machine();
    if args.kube_proxy.cleanup == Some(true) {
        return super::run(Cli { global, command: Command::Cleanup(CleanupArgs::default()) });
    }
    // In kube-proxy's order: a configuration is written without a look at the node.
    if let Some(path) = &args.kube_proxy.write_config_to {
        let config = written_config(&args, &global.bpffs, &around)?;
        say(&config);
        let written = kube_proxy_config::write(path, &config.kube_proxy);
        return written.map_err(|source| {
            UsageError::WriteConfigTo { path: path.clone(), why: source.to_string() }.into()
        });
    }
    let config = run_config(&args, &global.bpffs, &around)?;
    if args.kube_proxy.init_only == Some(true) {
        say(&config);
        eprintln!(
            "--init-only: the configuration is good; nothing is to be done with more privileges than the agent has"
        );
        return Ok(());
    }
    let (again, bpffs): (RunArgs, PathBuf) = (args, global.bpffs);
    Ok(agent::run(config, Box::new(move || would_start(&again, &bpffs)))?)
}

/// Whether the agent would start with what is there now, as far as that can be known without doing anything: the whole
/// command line is resolved, and the kubeconfig is read. Within a runtime only.
fn would_start(args: &RunArgs, bpffs: &Path) -> Result<(), String> {
    let config =
        run_config(args, bpffs, &Surroundings::of_this_machine()).map_err(|error| error.to_string())?;
    Source::open(&config.source, &config.node_name).map(drop).map_err(|error| error.to_string())
}

/// The agent logs these; there is no log yet.
fn say(config: &Config) {
    config.notes.iter().for_each(|note| eprintln!("{note}"));
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser as _;

    use super::*;

    #[tokio::test]
    async fn whatever_would_be_refused_at_start_is_refused_for_a_change() {
        let dir = std::env::temp_dir().join(format!("shunt-would-start-{}", std::process::id()));
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
        let judge = || would_start(&args, Path::new("/b"));
        let error = judge().unwrap_err();
        assert!(error.contains("clientConnection.kubeconfig") && error.contains("No such file"), "{error}");
        fs::write(&kubeconfig, "apiVersion: v1\nkind: Config\n").unwrap();
        let error = judge().unwrap_err();
        assert!(error.contains("names no cluster"), "{error}");
        let good = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                    contexts: [{name: c, context: {cluster: c, user: u}}]\n\
                    clusters: [{name: c, cluster: {server: 'https://192.168.8.201:6443'}}]\n\
                    users: [{name: u, user: {token: t}}]\n";
        fs::write(&kubeconfig, good).unwrap();
        assert_eq!(judge(), Ok(()));
        fs::write(&file, format!("{text}detectLocalMode: BridgeInterface\n")).unwrap();
        assert!(judge().is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
