//! `shunt run`: the agent, or what kube-proxy's flags ask for in its place.

use super::{
    args::{CleanupArgs, Cli, Command, GlobalArgs, RunArgs},
    failure::Failure,
    resolve::{Surroundings, UsageError, run_config, written_config},
};
use crate::{agent, config::Config, kube_proxy_config};

pub fn run(args: RunArgs, global: GlobalArgs) -> Result<(), Failure> {
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
    Ok(agent::run(config)?)
}

/// The agent logs these; there is no log yet.
fn say(config: &Config) {
    config.notes.iter().for_each(|note| eprintln!("{note}"));
}
