//! The client of the cluster's API server: addresses and credentials, single requests, open watches, retry delays.
//!
//! It knows no resources: `sources::kube` lists and watches through it, `events` sends through it.

mod access;
mod backoff;
mod error;
mod request;
mod token;

pub use self::{
    access::AccessError,
    backoff::{Backoff, chance},
    error::RequestError,
    request::{ApiServer, Lines, Status},
};
