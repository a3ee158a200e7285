//! Pages for the suite: one GET at a time, answered from what a closure says.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// A request that is longer is nobody's.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Serves on all addresses, on a thread of its own, for as long as the process lives. `None` is answered with 404.
pub(super) fn serve(port: u16, answer: impl Fn(&str) -> Option<String> + Send + 'static) -> Result<()> {
    let addresses: [SocketAddr; 2] = [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()];
    let listener = TcpListener::bind(&addresses[..]).with_context(|| format!("binding the page to port {port}"))?;
    std::thread::Builder::new().name("page".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever asked sees a broken connection, and asks again.
            drop(respond(stream, &answer));
        }
    })?;
    Ok(())
}

fn respond(mut stream: TcpStream, answer: &impl Fn(&str) -> Option<String>) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default();
    let (status, body) = answer(path).map_or(("404 Not Found", String::new()), |body| ("200 OK", body));
    let length = body.len();
    let kind = "content-type: application/json\r\nconnection: close";
    stream.write_all(format!("HTTP/1.1 {status}\r\n{kind}\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes())
}
