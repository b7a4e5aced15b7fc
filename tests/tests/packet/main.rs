//! The packet suite: the real object, packet by packet, with BPF_PROG_TEST_RUN. The output of one hook is the input of
//! the next; every byte is compared with a packet built from scratch.
//!
//! Needs root and iproute2. No program is attached; each process loads the object with maps of its own.

mod affinity;
mod balance;
mod case;
mod cluster_ip;
mod counted;
mod differential;
mod extension;
mod flows;
mod foreign;
mod foreign_flows;
mod forged_segments;
mod fragment_limits;
mod fragments;
mod full;
mod icmp_error;
mod map_store;
mod martians;
mod masquerade;
mod monitor;
mod node_flows;
mod ping;
mod policy;
mod refusal;
mod sctp;
mod source_ports;
mod source_ranges;
mod three_parties;
mod trace;
mod unserved_addresses;
mod xdp;
