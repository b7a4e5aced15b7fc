//! One connection: a sequence of HTTP/1.1 requests over TCP or TLS.

use std::{
    io::{self, BufReader, Read, Write},
    net::TcpStream,
};

use super::{answer, request::Request, shared::Shared};

/// Serves until the client or the server closes the connection.
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
        let Some(mut request) = Request::read(&mut stream)? else { return Ok(()) };
        request.is_known |= has_certificate(stream.get_ref());
        if !answer::answer(shared, &request, stream.get_mut())? {
            return Ok(());
        }
    }
    Ok(())
}
