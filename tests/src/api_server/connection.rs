//! One connection: HTTP/1.1 requests, one after the other, over TCP or TLS.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use super::{Shared, TOKEN, answer};

/// The head of a request.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub is_known: bool,
}

/// Serves until the client, or the server, closes.
pub fn serve(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    match &shared.tls {
        None => serve_on(shared, BufReader::new(stream), |_| false),
        Some(tls) => {
            let connection = rustls::ServerConnection::new(tls.config.clone()).map_err(io::Error::other)?;
            let stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
            serve_on(shared, stream, |stream| stream.conn.peer_certificates().is_some())
        }
    }
}

fn serve_on<S: Read + Write>(
    shared: &Shared,
    mut stream: BufReader<S>,
    has_certificate: impl Fn(&S) -> bool,
) -> io::Result<()> {
    while shared.is_up() {
        let Some(mut request) = read_request(&mut stream)? else { return Ok(()) };
        request.is_known |= has_certificate(stream.get_ref());
        if !answer::answer(shared, &request, stream.get_mut())? {
            return Ok(());
        }
    }
    Ok(())
}

fn read_request(stream: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request::of(&method, &target);
    let mut length = 0;
    loop {
        let mut header = String::new();
        if stream.read_line(&mut header)? == 0 || header == "\r\n" {
            break;
        }
        if let Some((name, value)) = header.split_once(':') {
            request.is_known |=
                name.eq_ignore_ascii_case("authorization") && value.trim() == format!("Bearer {TOKEN}");
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
    }
    request.body.resize(length, 0);
    stream.read_exact(&mut request.body)?;
    Ok(Some(request))
}

fn unescape(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let hex: Vec<u8> = bytes.by_ref().take(2).collect();
        let hex = String::from_utf8(hex).unwrap_or_default();
        out.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Request {
    /// What a request's first line says.
    pub fn of(method: &str, target: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let query = pairs.map(|(name, value)| (name.to_owned(), unescape(value))).collect();
        let (method, path) = (method.to_owned(), path.to_owned());
        Self { method, path, query, body: Vec::new(), is_known: false }
    }

    pub fn value(&self, name: &str) -> &str {
        self.query.iter().find(|(of, _)| of == name).map_or("", |(_, value)| value)
    }
}
