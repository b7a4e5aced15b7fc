//! The API server is followed: what it stores is what the agent knows, whatever it and the network do on the way.
//!
//! Scenarios that need no fault on demand run against a real kube-apiserver and etcd where `KUBEBUILDER_ASSETS` names the
//! directory that holds them, and against the harness's server otherwise (`tests::api_server::of_environment`). The
//! others need what a real one does when it likes, and meet the harness's server always: all of `faults` but
//! `a_server_that_was_away_tells_of_removals`; of `lists` the page whose version is gone, empty lists, refused streams
//! and `nothing_is_complete_before_all_lists_are`; of `selection` ServiceCIDRs in other versions and objects that cannot
//! be read; of `access` several addresses.
//!
//! Needs root for the tests with nodes (namespaces, the built binary); the others use loopback alone.

mod access;
mod agent_status;
mod credentials;
mod faults;
mod follower;
mod lists;
mod nodes;
mod pod;
mod selection;
