//! The network suite: real sockets in a cluster of network namespaces, the real `shunt` on each node.
//!
//! Needs root, iproute2 and nftables, and the built binary (`cargo xtask build`). Each test creates its own cluster.
//! `SHUNT_TEST_FOREIGN=1` runs foreign traffic in every test that starts `shunt` on a whole cluster (see
//! [`tests::net::foreign_traffic`]); `SHUNT_TEST_FULL=1` runs the full number of flows where the default is the
//! smallest number that shows a fault. `SHUNT_TEST_HOLD=SECONDS` keeps a failed test's cluster for that time and prints
//! how to enter it.

mod attachment;
mod bare;
mod check_limits;
mod cluster_ip;
mod cni_rules;
mod concurrency;
mod config_file;
mod contained;
mod demo;
mod devices;
mod distribution;
mod drops_by_device;
mod explain;
mod external_local;
mod first_backend;
mod foreign_flows_masquerade;
mod foreign_flows_moved_address;
mod foreign_flows_node;
mod foreign_flows_one_port;
mod foreign_program;
mod foreign_traffic;
mod foreign_world;
mod forged_segments;
mod fragments;
mod host_processes;
mod inspection;
mod kube_proxy;
mod listener_limits;
mod manifests;
mod monitor;
mod monitor_lease;
mod narrow_hop;
mod node_backends;
mod node_port;
mod options;
mod ping;
mod port_unreachable;
mod refusal;
mod restart;
mod s2_10_affinity;
mod s2_11_flood;
mod s2_11_sockets;
mod s2_11_tcp;
mod s2_11_udp;
mod s2_13_restart;
mod s2_2_services;
mod s2_3_addresses;
mod s2_3_service_ports;
mod s2_4_slices;
mod s2_5_endpoint_choice;
mod s2_6_cluster_addresses;
mod s2_6_verdicts;
mod s2_7_detect_local;
mod s2_7_source;
mod s2_8_node_port_addresses;
mod s2_9_source_ranges;
mod s3_1_health;
mod s3_2_health_check;
mod s3_3_metrics;
mod same_tuple;
mod shown;
mod source_address;
mod source_ports;
mod statistics;
mod symmetric_replies;
mod takeover;
mod trio;
mod unusual_packets;
mod world;
mod xdp;
