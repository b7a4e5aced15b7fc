//! shunt's controller and command line as a library, so that the suites under `tests/` can reach it.

pub mod agent;
pub mod api;
pub mod bpf;
pub mod check;
pub mod cleanup;
pub mod cli;
pub mod compile;
pub mod config;
pub mod controller;
pub mod datapath;
pub mod explain;
pub mod health;
pub mod health_checks;
pub mod inspect;
pub mod kube_proxy;
pub mod kube_proxy_config;
pub mod maps;
pub mod model;
pub mod netfilter;
pub mod node;
pub mod object;
pub mod offline;
pub mod problem;
pub mod snapshot;
pub mod source;
pub mod tables;
