//! The ground floor: maps, globals, atomic access, and plain data. Nothing here knows a stage of the datapath.
//! Every other module may import it; it imports `proxy-common` and aya only.

pub mod atomic;
pub mod clock;
pub mod globals;
pub mod maps;
pub mod protocol_headers;
pub mod scratch;
pub mod verdict;
