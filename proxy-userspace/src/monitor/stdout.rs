//! Non-blocking standard output: while nobody reads it, the process must still renew the lease and react to signals. Output
//! is written only when poll(2) reports space.
//!
//! A writable pipe accepts [`CHUNK`] bytes without blocking. A terminal may have space for only one byte and would then block
//! the writer, so it is reopened with O_NONBLOCK. Setting that on stdout itself would affect other processes that share it.

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use nix::{errno::Errno, poll::PollFlags, unistd::write};

/// What a writable pipe accepts without blocking (PIPE_BUF).
const CHUNK: usize = 4096;

/// Buffered output.
pub struct Stdout {
    fd: OwnedFd,
    text: Vec<u8>,
    written: usize,
}

impl Stdout {
    pub fn new() -> io::Result<Self> {
        let stdout = io::stdout();
        let reopen = || {
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
            File::options().write(true).custom_flags(flags).open("/proc/self/fd/1").ok()
        };
        // Without /proc, or if the terminal belongs to another user, writing may block.
        let fd = match stdout.is_terminal().then(reopen).flatten() {
            Some(terminal) => terminal.into(),
            None => stdout.as_fd().try_clone_to_owned()?,
        };
        Ok(Self { fd, text: Vec::new(), written: 0 })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether all output has been written.
    pub fn is_empty(&self) -> bool {
        self.left() == 0
    }

    /// Number of unwritten bytes.
    pub fn left(&self) -> usize {
        self.text.len() - self.written
    }

    /// The poll events to wait for; without pending output only errors and hangup.
    pub fn interest(&self) -> PollFlags {
        if self.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT }
    }

    /// The buffer to append output to. Its content must not be removed.
    pub fn text(&mut self) -> &mut Vec<u8> {
        if self.is_empty() {
            self.text.clear();
            self.written = 0;
        }
        &mut self.text
    }

    /// Writes pending output; `ready` is the result of poll(2).
    pub fn write(&mut self, ready: PollFlags) -> io::Result<()> {
        if ready.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !ready.contains(PollFlags::POLLOUT) {
            return Ok(());
        }
        let rest = &self.text[self.written..];
        match write(&self.fd, &rest[..rest.len().min(CHUNK)]) {
            Ok(count) => self.written += count,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unwritten_text_stays_in_the_buffer() {
        let mut stdout = Stdout::new().unwrap();
        assert!(stdout.is_empty() && stdout.interest().is_empty());
        stdout.text().extend(b"one");
        assert_eq!(stdout.interest(), PollFlags::POLLOUT);
        stdout.written = 2;
        stdout.text().extend(b"two");
        assert_eq!(&stdout.text[stdout.written..], b"etwo");
        stdout.written = 6;
        assert!(stdout.is_empty() && stdout.text().is_empty());
    }

    #[test]
    fn a_closed_reader_is_a_broken_pipe() {
        let mut stdout = Stdout::new().unwrap();
        assert!(stdout.write(PollFlags::empty()).is_ok());
        let gone = stdout.write(PollFlags::POLLERR).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
    }
}
