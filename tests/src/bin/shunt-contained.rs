//! Runs a program in a container of its own: see [`tests::net::container`].

use std::process::ExitCode;

use clap::Parser as _;
use tests::net::container::{self, Container};

fn main() -> ExitCode {
    match container::run(&Container::parse()) {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)),
        Err(error) => {
            eprintln!("shunt-contained: {error:#}");
            ExitCode::from(125)
        }
    }
}
