//! The read side of the pinned maps: one module per object of the command line, each a plain view and its printer. It works
//! while the agent is down and needs only CAP_BPF. Views are built from plain entries, so tests build them in memory;
//! printers write into an `impl Write`. Writes nothing, except that `conntrack flush` deletes entries. Called by
//! [`crate::cli`], and by the modules that show the same data in another way.

pub mod affinity;
pub mod backends;
pub mod conntrack;
pub mod counters;
pub mod drops;
mod error;
pub mod jiffies;
pub mod links;
pub mod map_args;
pub mod map_format;
pub mod maps;
pub mod per_cpu;
pub mod pins;
pub mod programs;
pub mod services;
pub mod statistics;
pub mod status;
pub mod table;
pub mod text;

pub use self::error::InspectError;
