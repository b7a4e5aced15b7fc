//! The API server of this run: a real one if [`ASSETS`] points to its programs, otherwise the harness's.

use std::{env, path::PathBuf, sync::Arc};

use anyhow::Result;

use super::{
    api::{ASSETS, Api},
    certificates::Certificates,
    real::RealServer,
    server::ApiServer,
};
use crate::net::Netns;

/// The directory of the real programs, if it is set.
fn assets() -> Option<PathBuf> {
    env::var_os(ASSETS).filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// The server of this run, at this machine's loopback address: a real one if `KUBEBUILDER_ASSETS` points to its
/// programs, otherwise the harness's.
pub fn of_environment() -> Result<Box<dyn Api>> {
    Ok(match assets() {
        Some(dir) => Box::new(RealServer::local(&dir)?),
        None => Box::new(ApiServer::local_tls()?),
    })
}

/// The same in a namespace, at 192.168.8.100:6443.
pub fn of_environment_in(netns: Arc<Netns>) -> Result<Box<dyn Api>> {
    let addr = "192.168.8.100:6443".parse()?;
    Ok(match assets() {
        Some(dir) => Box::new(RealServer::start_in(&dir, netns, addr)?),
        None => Box::new(ApiServer::start_at(Some(netns), addr, Some(Certificates::new()?))?),
    })
}
