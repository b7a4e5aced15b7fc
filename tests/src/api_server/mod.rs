//! A Kubernetes API server for tests: list and watch over HTTP or HTTPS, to the extent that a Service proxy uses them,
//! and on demand the faults of real servers.
//!
//! It enforces the agent's ClusterRole ([`grants`]): any other request is rejected and recorded, and fails the server's
//! test.

mod answer;
mod api;
mod certificates;
mod connection;
mod environment;
mod events;
mod grants;
mod real;
mod refusal;
mod request;
mod selector;
mod server;
mod shared;
mod store;

pub use self::{
    api::{ASSETS, Api, kubeconfig},
    certificates::{Certificates, NAME},
    environment::{of_environment, of_environment_in},
    real::RealServer,
    request::TOKEN,
    server::ApiServer,
    store::{Fault, Store},
};
