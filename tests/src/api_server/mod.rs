//! A Kubernetes API server for tests: list and watch over HTTP or HTTPS, as much of it as a Service proxy asks for,
//! and the faults of real ones on demand.
//!
//! It asserts what the agent's ClusterRole grants ([`grants`]): any other request is refused and remembered, and fails
//! the test whose server it is.

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
