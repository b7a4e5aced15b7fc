//! What operators look at: counters, statistics per Service, drops per device, events, the trace. Written by the stages
//! above; no packet's path depends on anything in here.

pub mod counters;
pub mod drops;
pub mod events;
pub mod service_stats;
pub mod trace;
