//! `--trace`: logs the sampled decisions that the programs write to their ring buffer. Without the flag the programs write
//! nothing there.

use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tokio::io::{Interest, unix::AsyncFd};

/// Forwards aya's records to tracing.
#[derive(Debug)]
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        tracing::info!(target: "trace", "{}", record.args());
    }

    fn flush(&self) {}
}

/// Starts the reader; its task ends with the runtime.
pub fn start(ebpf: &mut Ebpf) -> io::Result<()> {
    let logger = EbpfLogger::init_with_logger(ebpf, ToTracing).map_err(io::Error::other)?;
    // SAFETY: the logger owns its ring buffer's descriptor, which never changes, and the `AsyncFd` owns the logger.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }?;
    tokio::spawn(async move {
        loop {
            match logger.readable_mut().await {
                Ok(mut guard) => {
                    guard.get_inner_mut().flush();
                    guard.clear_ready();
                }
                Err(error) => {
                    tracing::warn!(%error, "the trace has ended");
                    return;
                }
            }
        }
    });
    Ok(())
}
