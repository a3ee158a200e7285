//! From an endpoint to a connected stream: name, TCP, TLS.
//!
//! Owns no connection. Sets on each socket what a destination's needs: no delay, keep-alive, and an end for data that
//! nobody acknowledges, so that a dead peer is noticed without a timer of our own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::classify::{Failure, Fault, connect as classify};
use super::tls::TlsClient;
use crate::config::Tls;

/// How to reach one destination.
#[derive(Debug)]
pub(crate) struct Connector {
    host: String,
    port: u16,
    tls: Option<TlsClient>,
    timeout: Duration,
}

/// A connected stream.
#[derive(Debug)]
pub(crate) enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connector {
    /// Of a URL with scheme `http` or `https`. An error says what is wrong with it or with a TLS file.
    pub(crate) fn new(url: &http::Uri, tls: &Tls, alpn: &[&str], timeout: Duration) -> io::Result<Self> {
        let host = url.host().ok_or_else(|| io::Error::other(format!("{url} names no host")))?;
        // An IPv6 address stands in brackets in a URL, and nowhere else.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let (default_port, tls) = match url.scheme_str() {
            Some("https") => (443, Some(TlsClient::new(tls.clone(), &host, alpn)?)),
            Some("http") => (80, None),
            _ => return Err(io::Error::other(format!("{url} begins with neither http:// nor https://"))),
        };
        Ok(Self { port: url.port_u16().unwrap_or(default_port), host, tls, timeout })
    }

    /// Whether connections are encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Result<Io, Failure> {
        match tokio::time::timeout(self.timeout, self.connect_within()).await {
            Ok(Ok(io)) => Ok(io),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::busy(format!("connecting to {}:{}: timeout", self.host, self.port))),
        }
    }

    async fn connect_within(&self) -> Result<Io, Failure> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| self.named(&error))?;
        self.prepare(&tcp).map_err(|error| self.named(&error))?;
        let Some(tls) = &self.tls else { return Ok(Io::Plain(tcp)) };
        // A file that was replaced by a broken one: nothing that another payload could mend.
        let config = tls.config().map_err(|error| Failure::new(Fault::Destination, format!("TLS: {error}")))?;
        let stream = TlsConnector::from(config).connect(tls.name(), tcp).await.map_err(|error| self.named(&error))?;
        Ok(Io::Tls(Box::new(stream)))
    }

    fn prepare(&self, tcp: &TcpStream) -> io::Result<()> {
        use rustix::net::sockopt;
        tcp.set_nodelay(true)?;
        sockopt::set_socket_keepalive(tcp, true)?;
        sockopt::set_tcp_keepidle(tcp, Duration::from_secs(20))?;
        sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(10))?;
        let unacknowledged_ms = u32::try_from(self.timeout.as_millis().clamp(5_000, 60_000)).unwrap_or(60_000);
        sockopt::set_tcp_user_timeout(tcp, unacknowledged_ms)?;
        Ok(())
    }

    fn named(&self, error: &io::Error) -> Failure {
        let failure = classify(error);
        Failure { reason: format!("{}:{}: {}", self.host, self.port, failure.reason), ..failure }
    }
}

impl Io {
    /// Whether both sides agreed on HTTP/2. Without TLS nobody was asked.
    pub(crate) fn agreed_on_http2(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
