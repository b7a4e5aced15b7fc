//! shunt's controller and command line as a library, so that the suites under `tests/` can reach it.

pub mod bpf;
pub mod cli;
pub mod config;
pub mod inspect;
pub mod maps;
pub mod model;
pub mod source;
