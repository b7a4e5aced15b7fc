//! Standard output for a process that must do something else while nobody reads it: renew the lease, end on a signal. It is
//! written to only where the kernel says that there is room.
//!
//! A pipe that has room takes [`CHUNK`] bytes at once; a terminal may have room for one byte only and then makes its writer
//! wait, so it is opened anew without that. Standard output itself is shared with others, who count on waiting.

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use nix::{errno::Errno, poll::PollFlags, unistd::write};

/// What a pipe that is ready takes without making its writer wait (PIPE_BUF).
const CHUNK: usize = 4096;

/// What is to be written, and how far that has come.
pub struct Out {
    stdout: OwnedFd,
    text: Vec<u8>,
    written: usize,
}

impl Out {
    pub fn new() -> io::Result<Self> {
        let stdout = io::stdout();
        let anew = || {
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
            File::options().write(true).custom_flags(flags).open("/proc/self/fd/1").ok()
        };
        // Without /proc, or where the terminal is another user's, writing may wait.
        let stdout = match stdout.is_terminal().then(anew).flatten() {
            Some(terminal) => terminal.into(),
            None => stdout.as_fd().try_clone_to_owned()?,
        };
        Ok(Self { stdout, text: Vec::new(), written: 0 })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stdout.as_fd()
    }

    /// Whether everything has been written.
    pub fn is_empty(&self) -> bool {
        self.left() == 0
    }

    /// Bytes that are still to be written.
    pub fn left(&self) -> usize {
        self.text.len() - self.written
    }

    /// What to wait for: room for more, or nothing but that the reader goes.
    pub fn interest(&self) -> PollFlags {
        if self.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT }
    }

    /// Where to put more; of what is here nothing may be taken away.
    pub fn text(&mut self) -> &mut Vec<u8> {
        if self.is_empty() {
            self.text.clear();
            self.written = 0;
        }
        &mut self.text
    }

    /// Writes some more, after poll(2) has said `ready`.
    pub fn write(&mut self, ready: PollFlags) -> io::Result<()> {
        if ready.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !ready.contains(PollFlags::POLLOUT) {
            return Ok(());
        }
        let rest = &self.text[self.written..];
        match write(&self.stdout, &rest[..rest.len().min(CHUNK)]) {
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
    fn what_is_written_makes_room_and_what_is_not_stays() {
        let mut out = Out::new().unwrap();
        assert!(out.is_empty() && out.interest().is_empty());
        out.text().extend(b"one");
        assert_eq!(out.interest(), PollFlags::POLLOUT);
        out.written = 2;
        out.text().extend(b"two");
        assert_eq!(&out.text[out.written..], b"etwo");
        out.written = 6;
        assert!(out.is_empty() && out.text().is_empty());
    }

    #[test]
    fn a_reader_that_is_gone_is_a_broken_pipe() {
        let mut out = Out::new().unwrap();
        assert!(out.write(PollFlags::empty()).is_ok());
        let gone = out.write(PollFlags::POLLERR).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
    }
}
