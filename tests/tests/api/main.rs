//! The API server is followed: what it stores is what the agent knows, whatever it and the network do on the way.
//!
//! Needs root for the two tests with nodes (namespaces, the built binary); the others use loopback alone.

mod access;
mod faults;
mod follower;
mod lists;
mod nodes;
mod selection;
mod telling;
