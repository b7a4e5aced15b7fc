//! Real sockets at chosen places, and the outcomes of using them.

mod attempt;
mod bulk;
mod client;
#[cfg(feature = "suites")]
pub mod pieces;
mod ping;
mod server;
mod stream;
mod tweak;
mod udp;

pub use attempt::{Answer, Attempt, Outcome, Tally};
pub use client::Client;
pub use ping::ping;
pub use server::Server;
pub use stream::Stream;
pub use udp::UdpClient;
