//! A TCP connection that stays open, to check that it is not disturbed.

use std::{
    cell::{Cell, RefCell},
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use super::{Answer, bulk};

/// An open connection to one of our servers.
#[derive(Debug)]
pub struct Stream {
    stream: TcpStream,
    reader: RefCell<BufReader<TcpStream>>,
    asked: Cell<usize>,
}

impl Stream {
    pub(super) fn new(stream: TcpStream, patience: Duration) -> io::Result<Self> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        let reader = RefCell::new(BufReader::new(stream.try_clone()?));
        Ok(Self { stream, reader, asked: Cell::new(0) })
    }

    /// Sends a request and returns the reply; the connection stays open.
    pub fn ask(&self) -> io::Result<Answer> {
        self.request("GET / HTTP/1.1\r\nHost: shunt\r\n\r\n", &[])
    }

    /// Uploads `body` in one request.
    pub fn upload(&self, body: &[u8]) -> io::Result<Answer> {
        let head = format!("POST / HTTP/1.1\r\nHost: shunt\r\nContent-Length: {}\r\n\r\n", body.len());
        self.request(&head, body)
    }

    /// Uploads `length` bytes (a multiple of 8); fails unless the server received the same bytes.
    pub fn upload_checked(&self, length: usize) -> io::Result<()> {
        (&self.stream).write_all(
            format!("POST / HTTP/1.1\r\nHost: shunt\r\nContent-Length: {length}\r\n\r\n").as_bytes(),
        )?;
        let sent = bulk::write(&mut &self.stream, length)?;
        self.asked.set(self.asked.get() + 1);
        let text = self.body()?;
        if text.trim_end().ends_with(&format!(" sum {}", sent.value())) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("{length} bytes arrived changed: {text}")))
    }

    /// Downloads `length` bytes (a multiple of 8); fails unless they match the bytes the server sent.
    pub fn download_checked(&self, length: usize) -> io::Result<()> {
        (&self.stream).write_all(format!("GET /{length} HTTP/1.1\r\nHost: shunt\r\n\r\n").as_bytes())?;
        self.asked.set(self.asked.get() + 1);
        let announced = self.content_length()?;
        let got = bulk::read(&mut *self.reader.borrow_mut(), announced)?;
        if announced == length && got == bulk::write(&mut io::sink(), length)? {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("{length} bytes asked for arrived changed")))
    }

    /// Sends a last request with `Connection: close`, and closes.
    pub fn last(self, patience: Duration) -> io::Result<Answer> {
        self.stream.set_read_timeout(Some(patience))?;
        self.request("GET / HTTP/1.1\r\nHost: shunt\r\nConnection: close\r\n\r\n", &[])
    }

    /// Sends `count` requests; panics unless the same backend answers each time and sees the same client address.
    #[track_caller]
    pub fn steady(&self, count: usize) -> Answer {
        let asked = self.asked.get();
        let ask = |nth| match self.ask() {
            Ok(answer) => answer,
            Err(error) => panic!("request {nth} on an open stream to {:?}: {error}", self.stream.peer_addr()),
        };
        let first = ask(asked);
        for nth in 1..count {
            assert_eq!(ask(asked + nth), first, "request {} on an open stream", asked + nth);
        }
        first
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// The address getpeername returns.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// The bare connection, for another protocol.
    pub fn into_inner(self) -> TcpStream {
        self.stream
    }

    fn request(&self, head: &str, body: &[u8]) -> io::Result<Answer> {
        (&self.stream).write_all(&[head.as_bytes(), body].concat())?;
        self.asked.set(self.asked.get() + 1);
        Answer::parse(&self.body()?)
    }

    /// The body of the next response.
    fn body(&self) -> io::Result<String> {
        let mut answer = vec![0; self.content_length()?];
        self.reader.borrow_mut().read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Reads a response's head; returns the length of its body.
    fn content_length(&self) -> io::Result<usize> {
        let mut reader = self.reader.borrow_mut();
        let mut length = 0;
        let mut line = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end().to_ascii_lowercase().split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().unwrap_or_default(),
                None if line.trim_end().is_empty() => return Ok(length),
                _ => {}
            }
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
