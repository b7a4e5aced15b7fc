//! Following an API server: the agent's objects match the stored ones, whatever the server and the network do in
//! between.
//!
//! Scenarios that inject no faults run against a real kube-apiserver and etcd if `KUBEBUILDER_ASSETS` names their
//! directory, and otherwise against the harness's server (`tests::api_server::of_environment`). The others depend on
//! behaviour that a real server shows only occasionally, and always use the harness's server: all of `faults` except
//! `a_server_that_was_away_tells_of_removals`; of `lists` the page whose version is gone, empty lists, rejected streams
//! and `nothing_is_complete_before_all_lists_are`; of `selection` ServiceCIDRs in other versions and objects that
//! cannot be read; of `access` several addresses.
//!
//! The tests with nodes (namespaces, the built binary) need root; the others use only loopback.

mod access;
mod agent_status;
mod credentials;
mod faults;
mod follower;
mod lists;
mod nodes;
mod pod;
mod selection;
