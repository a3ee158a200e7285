//! One OTLP request and its answer, over either protocol, each on a connection of its own.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use pillion_loadtest::client::{self, Connection};

/// Nobody waits longer for an answer: a gateway that is started again needs a second or two.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// What the gateway said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it was OK.
    pub is_ok: bool,
    /// `HTTP 503`, `gRPC 14`.
    pub status: String,
    /// Whether it says when to try again: Retry-After, or RetryInfo.
    pub has_delay: bool,
    /// What it says to people; of HTTP, the whole answer.
    pub words: String,
}

/// Over HTTP/1.1. A connect() that fails is ECONNREFUSED; everything else means that there was no answer.
pub fn over_http(address: SocketAddr, path: &str, body: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-protobuf\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    // One that refuses may not read everything.
    let written = stream.write_all(&[head.as_bytes(), body].concat());
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer).into_owned();
    let Some(status) = text.get(9..12).and_then(|digits| digits.parse::<u16>().ok()) else {
        return written.and(read).and(Err(io::ErrorKind::UnexpectedEof.into()));
    };
    let has_delay = text.to_ascii_lowercase().contains("\r\nretry-after: ");
    Ok(Answer { is_ok: status == 200, status: format!("HTTP {status}"), has_delay, words: text })
}

/// Over gRPC.
pub fn over_grpc(address: SocketAddr, path: &str, body: &[u8]) -> Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a client's runtime")?;
    let reply = runtime.block_on(async {
        let connection = Connection::open(address).await?;
        tokio::time::timeout(PATIENCE, connection.export(path, client::frame(body))).await?
    })?;
    let has_delay = reply.has_retry_info();
    Ok(Answer { is_ok: reply.status == 0, status: format!("gRPC {}", reply.status), has_delay, words: reply.message })
}
