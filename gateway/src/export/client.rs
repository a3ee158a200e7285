//! One destination's way of speaking: OTLP/gRPC or OTLP/HTTP with protobuf bodies.
//!
//! Turns a message into a request, and whatever comes back into an acceptance or a failure with a fault. It never
//! retries: that is for those who know what else is waiting.

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};

use super::classify::{self, Failure, Fault};
use super::connector::Connector;
use super::headers::Headers;
use super::link::{Answer, Link};
use super::merge::Body;
use super::pool::Pool;
use super::status::{self, Accepted};
use crate::base::Signal;
use crate::config::{Compression, Destination, DestinationKind};

const USER_AGENT: &str = concat!("pillion/", env!("CARGO_PKG_VERSION"));

/// `-bin` headers come with or without padding (gRPC over HTTP/2).
const BINARY_HEADER: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The speaker.
#[derive(Debug)]
pub(crate) struct Client {
    grpc: bool,
    urls: [Uri; 3],
    headers: RefCell<Headers>,
    compression: Compression,
    timeout: Duration,
    connector: Rc<Connector>,
    link: Link,
    pool: Pool,
    /// Of HTTP over TLS: what the server chose the last time.
    http2: Cell<Option<bool>>,
}

impl Client {
    /// For a destination that is not a sink. An error says what is wrong with it.
    pub(crate) fn new(destination: &Destination) -> std::io::Result<Self> {
        let (grpc, urls) = match &destination.kind {
            DestinationKind::Grpc { endpoint } => (true, grpc_urls(endpoint)?),
            DestinationKind::Http { urls } => (false, urls.clone()),
            DestinationKind::Sink => return Err(std::io::Error::other("a sink is not spoken to over a network")),
        };
        let alpn: &[&str] = if grpc { &["h2"] } else { &["h2", "http/1.1"] };
        let same_host =
            urls.iter().all(|url| url.authority() == urls[0].authority() && url.scheme() == urls[0].scheme());
        if !same_host {
            return Err(std::io::Error::other(
                "the URLs of the signals name different hosts: make them two destinations",
            ));
        }
        let connector = Rc::new(Connector::new(&urls[0], &destination.tls, alpn, destination.timeout)?);
        let base = base_headers(grpc, destination.compression, &urls[0])?;
        Ok(Self {
            grpc,
            headers: RefCell::new(Headers::new(base, destination.headers.clone())),
            compression: destination.compression,
            timeout: destination.timeout,
            link: Link::new(connector.clone()),
            pool: Pool::new(connector.clone()),
            http2: Cell::new((!connector.is_tls()).then_some(false)),
            connector,
            urls,
        })
    }

    /// Delivers one message. Ends within the destination's timeout.
    pub(crate) async fn send(&self, signal: Signal, message: Bytes) -> Result<Accepted, Failure> {
        let answer = match tokio::time::timeout(self.timeout, self.exchange(signal, message)).await {
            Ok(answer) => answer,
            Err(_) => {
                self.link.retire();
                Err(Failure::busy(format!("no answer within {:?}", self.timeout)))
            }
        };
        let outcome = answer.and_then(|answer| if self.grpc { grpc_outcome(&answer) } else { http_outcome(&answer) });
        if outcome.as_ref().is_err_and(|failure| failure.credentials) {
            self.headers.borrow_mut().distrust();
        }
        outcome
    }

    async fn exchange(&self, signal: Signal, message: Bytes) -> Result<Answer, Failure> {
        let headers = self.headers.borrow_mut().current(Instant::now())?;
        let message = compress(self.compression, message)?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.headers_mut() = headers;
        *request.uri_mut() = self.urls[signal.index()].clone();
        if self.grpc {
            *request.version_mut() = Version::HTTP_2;
            return self.link.call(request, Body::grpc(message, self.compression != Compression::None)).await;
        }
        if self.speaks_http2().await? {
            *request.version_mut() = Version::HTTP_2;
            // HTTP/2 has `:authority` instead.
            request.headers_mut().remove(header::HOST);
            let called = self.link.call(request, Body::plain(message)).await;
            if !self.link.is_connected() {
                self.http2.set(None);
            }
            return called;
        }
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
        self.pool.call(&request, &message).await
    }

    /// Without TLS HTTP/1.1; with it whatever the server chooses, asked again after a lost connection.
    async fn speaks_http2(&self) -> Result<bool, Failure> {
        if let Some(known) = self.http2.get() {
            return Ok(known);
        }
        let io = self.connector.connect().await?;
        let http2 = io.agreed_on_http2();
        match http2 {
            true => self.link.adopt(io).await?,
            false => self.pool.put(self.pool.adopt(io).await?),
        }
        self.http2.set(Some(http2));
        Ok(http2)
    }
}

fn grpc_urls(endpoint: &Uri) -> std::io::Result<[Uri; 3]> {
    let url = |signal: Signal| {
        let mut parts = endpoint.clone().into_parts();
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static(signal.grpc_path()));
        Uri::from_parts(parts).map_err(|error| std::io::Error::other(format!("{endpoint}: {error}")))
    };
    Ok([url(Signal::Traces)?, url(Signal::Metrics)?, url(Signal::Logs)?])
}

fn base_headers(grpc: bool, compression: Compression, url: &Uri) -> std::io::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    let encoding = match compression {
        Compression::None => None,
        Compression::Gzip => Some(HeaderValue::from_static("gzip")),
        Compression::Zstd => Some(HeaderValue::from_static("zstd")),
    };
    if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        encoding.map(|encoding| headers.insert("grpc-encoding", encoding));
    } else {
        let authority = url.authority().map_or("", http::uri::Authority::as_str);
        // Credentials in a URL are not sent; configuration refuses them.
        let host = authority.rsplit('@').next().unwrap_or_default();
        headers.insert(header::HOST, HeaderValue::from_str(host).map_err(std::io::Error::other)?);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        encoding.map(|encoding| headers.insert(header::CONTENT_ENCODING, encoding));
    }
    Ok(headers)
}

/// Level 1: beyond it the gateway's CPU costs more than the bytes do.
fn compress(compression: Compression, message: Bytes) -> Result<Bytes, Failure> {
    let compressed = match compression {
        Compression::None => return Ok(message),
        Compression::Gzip => {
            let buffer = Vec::with_capacity(message.len() / 4);
            let mut encoder = flate2::write::GzEncoder::new(buffer, flate2::Compression::fast());
            encoder.write_all(&message).and_then(|()| encoder.finish())
        }
        Compression::Zstd => zstd::bulk::compress(&message, 1),
    };
    compressed.map(Bytes::from).map_err(|error| Failure::busy(format!("compressing: {error}")))
}

fn grpc_outcome(answer: &Answer) -> Result<Accepted, Failure> {
    if answer.status != http::StatusCode::OK {
        return http_outcome(answer);
    }
    // A response without a body has its status among the headers.
    let headers = answer.trailers.as_ref().unwrap_or(&answer.headers);
    let code = headers.get("grpc-status").or_else(|| answer.headers.get("grpc-status"));
    let Some(code) = code.and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u16>().ok()) else {
        return Err(Failure::new(Fault::Destination, "the answer has no grpc-status: is this an OTLP/gRPC endpoint?"));
    };
    if code == 0 {
        return Ok(answer.body.get(5..).filter(|_| answer.body[0] == 0).map(status::accepted).unwrap_or_default());
    }
    let message = headers.get("grpc-message").map(|value| status::percent_decoded(value.as_bytes()));
    let details = headers.get("grpc-status-details-bin").and_then(|value| BINARY_HEADER.decode(value).ok());
    Err(classify::grpc(code, &message.unwrap_or_default(), details.as_deref()))
}

fn http_outcome(answer: &Answer) -> Result<Accepted, Failure> {
    if answer.status.is_success() {
        let content_type = answer.headers.get(header::CONTENT_TYPE);
        let protobuf = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/x-protobuf"));
        return Ok(if protobuf { status::accepted(&answer.body) } else { Accepted::default() });
    }
    let after = answer.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    Err(classify::http(answer.status, after, &answer.body, SystemTime::now()))
}
