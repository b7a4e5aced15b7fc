//! kube-proxy's configuration file, `KubeProxyConfiguration` of `kubeproxy.config.k8s.io/v1alpha1`: parsed and validated like
//! kube-proxy does, written, and watched for changes. The ConfigMap of kubeadm works unchanged.
//!
//! What the fields do is not decided here: the command line (`cli::resolve`) merges them with the flags of the same
//! meaning, so that there is one way from a setting to the agent.

pub mod duration;
mod error;
mod file_watch;
mod ignored_fields;
mod output;
mod parse;
mod types;
mod validate;

pub use self::{
    error::{ConfigFileError, FieldError, FieldErrors, Reason},
    file_watch::{DryRun, Watcher},
    ignored_fields::ignored_fields,
    output::{configz, write},
    parse::{ConfigFile, Parsed, parse, read},
    types::{API_VERSION, EXTERNAL_IPS_GATE, KIND, KubeProxyConfiguration, Mode},
};
