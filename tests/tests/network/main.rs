//! The network suite: real sockets in a cluster of network namespaces, the real `shunt` on each node.
//!
//! Needs root, iproute2 and nftables, and the built binary (`cargo xtask build`). Each test makes its own cluster.

mod bare;
