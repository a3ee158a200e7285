//! `destinations:`
//!
//! Keys are the Collector's where it has one. A setting of the Collector that has another place here, or none, is refused with
//! what to write instead. Endpoints and headers are never quoted where they may hold a credential.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};

use super::{DESTINATIONS_MAX, Places, path};
use crate::base::{DestinationName, Signal};
use crate::config::expand::Piece;
use crate::config::reader::{Member, Section, Value};
use crate::config::types::{Compression, Destination, DestinationKind, Header, HeaderSource, Retry, StartAt, Tls};

const HEADERS_MAX: usize = 64;
/// A stock Collector's limit.
const MAX_MESSAGE_BYTES: u64 = 4 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);
const WINDOW: usize = 8;

/// Headers that belong to the protocol: set twice they would break every request.
const RESERVED: [&str; 12] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "grpc-encoding",
    "grpc-accept-encoding",
    "grpc-timeout",
    "host",
    "keep-alive",
    "te",
    "transfer-encoding",
    "upgrade",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Grpc,
    Http,
    Sink,
}

/// Reads all of them.
pub(in crate::config) fn read_all<'r>(
    value: &Value<'r>,
    places: &mut Places<'r>,
) -> BTreeMap<DestinationName, Destination> {
    let mut out = BTreeMap::new();
    let members = value.members();
    if members.len() > DESTINATIONS_MAX {
        value.fail(format!("{} destinations are more than {DESTINATIONS_MAX}", members.len()), "");
        return out;
    }
    for Member { key, key_at, value: destination } in members {
        let valid =
            (1..=63).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_/.".contains(&b));
        if !valid {
            let message = "a destination's name has 1 to 63 letters, digits, '-', '_', '.' or '/'";
            value.fail_at(key_at, key, message, "");
        }
        let name = DestinationName(key.into());
        places.destinations.insert(name.clone());
        if let Some(destination) = destination.section(read).flatten() {
            out.insert(name, destination);
        }
    }
    out
}

fn read(section: &mut Section<'_>) -> Option<Destination> {
    let kind = kind(section);
    let encrypted = matches!(&kind, Some(kind) if uris(kind).any(|uri| uri.scheme_str() == Some("https")));
    let tls_value = section.take("tls");
    let tls = tls_value.as_ref().and_then(|value| value.section(|section| tls(value, section))).unwrap_or_default();
    if let (Some(value), Some(_), false) = (&tls_value, &kind, encrypted) {
        value.fail("the endpoint is not https: nothing would be encrypted", "write https:// or remove tls");
    }
    let compression = [("none", Compression::None), ("gzip", Compression::Gzip), ("zstd", Compression::Zstd)];
    let compression = section.take("compression").and_then(|value| value.choice(&compression, &["snappy", "lz4"]));
    let max_message_bytes = section.take("max_message_bytes").and_then(|value| max_message_bytes(&value));
    let headers = section.take("headers").map(|value| headers(&value)).unwrap_or_default();
    let timeout = section.take("timeout").and_then(|value| positive(&value));
    let retry = section.take("retry_on_failure").and_then(|value| retry(&value)).unwrap_or_default();
    let window = section.take("sending_queue").and_then(|value| value.section(window)).flatten();
    let merge = section.take("merge").and_then(|value| value.choice(&[("auto", true), ("never", false)], &[]));
    let allow = section.take("allow").map(|value| allow(&value)).unwrap_or_default();
    let starts = [("oldest", StartAt::Oldest), ("tail", StartAt::Tail)];
    let start = section.take("start").and_then(|value| value.choice(&starts, &[]));
    section.refuse_later(&["auth", "proxy_url", "keepalive", "balancer_name", "metadata_keys", "encoding"]);
    section.refuse("url", "renamed", "write endpoint");
    section.refuse("max_message_size", "renamed", "write max_message_bytes");
    section.refuse("start_at", "renamed", "write start: oldest or start: tail");
    section.refuse("insecure", "not a key", "the endpoint's scheme decides: http:// or https://");
    section.refuse("ca_file", "belongs under tls", "indent it below tls:");
    Some(Destination {
        kind: kind?,
        compression: compression.unwrap_or(Compression::None),
        max_message_bytes: max_message_bytes.unwrap_or(MAX_MESSAGE_BYTES),
        tls,
        headers,
        timeout: timeout.unwrap_or(TIMEOUT),
        retry,
        window: window.unwrap_or(WINDOW),
        merge: merge.unwrap_or(true),
        allow,
        start: start.unwrap_or(StartAt::Oldest),
    })
}

fn kind(section: &mut Section<'_>) -> Option<DestinationKind> {
    let words = [
        ("grpc", Protocol::Grpc),
        ("http", Protocol::Http),
        ("http/protobuf", Protocol::Http),
        ("sink", Protocol::Sink),
    ];
    let protocol = match section.take("protocol") {
        Some(value) => value.choice(&words, &["http/json", "kafka", "http3", "arrow"]),
        None => {
            section.fail("protocol is missing", "write protocol: grpc or protocol: http");
            None
        }
    };
    let endpoint = section.take("endpoint");
    let per_signal = ["traces_endpoint", "metrics_endpoint", "logs_endpoint"].map(|key| section.take(key));
    match protocol? {
        Protocol::Sink => {
            for value in endpoint.iter().chain(per_signal.iter().flatten()) {
                value.fail("the embedded sink has no endpoint", "remove it");
            }
            Some(DestinationKind::Sink)
        }
        Protocol::Grpc => {
            for value in per_signal.iter().flatten() {
                value.fail("gRPC has one endpoint for all signals", "remove it, or use protocol: http");
            }
            let Some(endpoint) = endpoint else {
                section.fail("endpoint is missing", "for example endpoint: https://otel.example:4317");
                return None;
            };
            dialable(&endpoint, DestinationKind::grpc)
        }
        Protocol::Http => http_urls(section, endpoint, per_signal),
    }
}

/// `endpoint` with `/v1/SIGNAL` behind it, or the signal's own URL as it is: the Collector's rule.
fn http_urls(
    section: &Section<'_>,
    endpoint: Option<Value<'_>>,
    per_signal: [Option<Value<'_>>; 3],
) -> Option<DestinationKind> {
    let base = endpoint.as_ref().map(|endpoint| {
        let uri = uri(endpoint)?;
        if uri.query().is_some() {
            endpoint.fail("an endpoint has no query", "write traces_endpoint, metrics_endpoint and logs_endpoint");
            return None;
        }
        Some(uri)
    });
    let mut urls = [None, None, None];
    for signal in Signal::ALL {
        urls[signal.index()] = match (&per_signal[signal.index()], &base) {
            (Some(own), _) => uri(own),
            (None, Some(Some(base))) => below(base, signal),
            (None, Some(None)) => None,
            (None, None) => {
                let message = format!("endpoint is missing, and so is {}_endpoint", signal.name());
                section.fail(message, "for example endpoint: https://otel.example:4318");
                None
            }
        };
    }
    let [Some(traces), Some(metrics), Some(logs)] = urls else { return None };
    Some(DestinationKind::Http { urls: [traces, metrics, logs] })
}

/// The URL of a signal below the base of an OTLP/HTTP endpoint.
fn below(base: &Uri, signal: Signal) -> Option<Uri> {
    format!("{}{}", base.to_string().trim_end_matches('/'), signal.http_path()).parse().ok()
}

impl DestinationKind {
    /// OTLP/gRPC to `http(s)://host:port`. The error says what is wrong and never quotes the URL.
    pub fn grpc(url: &str) -> Result<Self, &'static str> {
        let endpoint = endpoint_uri(url)?;
        if endpoint.path_and_query().is_some_and(|path| path.as_str() != "/") {
            return Err("a gRPC endpoint has no path");
        }
        Ok(Self::Grpc { endpoint })
    }

    /// OTLP/HTTP to `/v1/SIGNAL` below the URL. The error says what is wrong and never quotes the URL.
    pub fn http(url: &str) -> Result<Self, &'static str> {
        let base = endpoint_uri(url)?;
        if base.query().is_some() {
            return Err("an endpoint has no query");
        }
        let [Some(traces), Some(metrics), Some(logs)] = Signal::ALL.map(|signal| below(&base, signal)) else {
            return Err("not a valid URL");
        };
        Ok(Self::Http { urls: [traces, metrics, logs] })
    }
}

impl Destination {
    /// With the defaults of everything else, for every namespace.
    pub fn new(kind: DestinationKind) -> Self {
        Self {
            kind,
            compression: Compression::None,
            max_message_bytes: MAX_MESSAGE_BYTES,
            tls: Tls::default(),
            headers: Vec::new(),
            timeout: TIMEOUT,
            retry: Retry::default(),
            window: WINDOW,
            merge: true,
            allow: vec!["*".to_owned()],
            start: StartAt::Oldest,
        }
    }
}

fn uri(value: &Value<'_>) -> Option<Uri> {
    dialable(value, endpoint_uri)
}

fn dialable<T>(value: &Value<'_>, parse: impl FnOnce(&str) -> Result<T, &'static str>) -> Option<T> {
    match parse(&value.text()?) {
        Ok(dialable) => Some(dialable),
        Err(message) => {
            value.fail(message, "for example https://otel.example:4317");
            None
        }
    }
}

/// Scheme, host and perhaps a port: what can be dialled. The error never quotes the text.
fn endpoint_uri(text: &str) -> Result<Uri, &'static str> {
    if text.contains('@') {
        return Err("user names and passwords in an endpoint are not supported: send a header instead");
    }
    let (scheme, rest) = text.split_once("://").ok_or("the scheme is missing: write http:// or https://")?;
    if scheme != "http" && scheme != "https" {
        return Err("the scheme is neither http nor https");
    }
    if rest.is_empty() || rest.starts_with(['/', ':', '?']) {
        return Err("the host is missing");
    }
    let uri: Uri = text.parse().map_err(|_| "not a valid URL")?;
    let authority = uri.authority().ok_or("the host is missing")?;
    let has_port = authority.as_str().len() > authority.host().len();
    if has_port && matches!(authority.port_u16(), None | Some(0)) {
        return Err("the port is not a number from 1 to 65535");
    }
    Ok(uri)
}

fn uris(kind: &DestinationKind) -> impl Iterator<Item = &Uri> {
    let uris = match kind {
        DestinationKind::Grpc { endpoint } => std::slice::from_ref(endpoint),
        DestinationKind::Http { urls } => urls,
        DestinationKind::Sink => &[],
    };
    uris.iter()
}

fn tls(value: &Value<'_>, section: &mut Section<'_>) -> Tls {
    let mut file = |key| section.take(key).and_then(|value| path(&value));
    let [ca_file, cert_file, key_file]: [Option<PathBuf>; 3] = ["ca_file", "cert_file", "key_file"].map(&mut file);
    if cert_file.is_some() != key_file.is_some() {
        value.fail("cert_file and key_file belong together", "give both or neither");
    }
    let server_name = section.take("server_name_override").and_then(|value| value.filled_text());
    section.refuse("server_name", "renamed", "write server_name_override");
    section.refuse("insecure", "not a key", "the endpoint's scheme decides: http:// or https://");
    let help = "add the authority's certificate with ca_file";
    section.refuse("insecure_skip_verify", "certificates are always verified", help);
    for key in ["ca_pem", "cert_pem", "key_pem"] {
        section.refuse(key, "not supported yet", "write it to a file, and name that: ca_file, cert_file, key_file");
    }
    section.refuse_later(&["min_version", "max_version", "cipher_suites", "reload_interval"]);
    Tls { ca_file, cert_file, key_file, server_name }
}

fn headers(value: &Value<'_>) -> Vec<Header> {
    let members = value.members();
    if members.len() > HEADERS_MAX {
        value.fail(format!("more than {HEADERS_MAX} headers"), "");
        return Vec::new();
    }
    let mut headers: Vec<Header> = Vec::new();
    for Member { key, key_at, value: source } in members {
        let Ok(name) = HeaderName::from_bytes(key.to_ascii_lowercase().as_bytes()) else {
            value.fail_at(key_at, key, "not a header's name", "letters, digits and hyphens");
            continue;
        };
        if RESERVED.contains(&name.as_str()) {
            value.fail_at(key_at, key, "the protocol sets this header itself", "remove it");
        } else if headers.iter().any(|header| header.name == name) {
            value.fail_at(key_at, key, "the header appears twice", "keep one of them");
        } else if let Some(source) = header_source(&source) {
            headers.push(Header { name, value: source });
        }
    }
    headers
}

fn header_source(value: &Value<'_>) -> Option<HeaderSource> {
    let sendable = |text: &str| HeaderValue::from_str(text).is_ok_and(|value| value.to_str().is_ok());
    let pieces = value.pieces()?;
    let texts = pieces.iter().filter_map(|piece| match piece {
        Piece::Text(text) => Some(text),
        Piece::File(_) => None,
    });
    if !texts.into_iter().all(|text| sendable(text)) {
        value.fail("the value has characters that a header cannot carry", "printable ASCII only, no line ends");
        return None;
    }
    match pieces.as_slice() {
        [] => Some(HeaderSource::Literal(String::new())),
        [Piece::Text(text)] => Some(HeaderSource::Literal(text.clone())),
        [Piece::File(file)] => Some(HeaderSource::File(file.into())),
        [Piece::Text(prefix), Piece::File(file)] => Some(template(prefix, file, "")),
        [Piece::File(file), Piece::Text(suffix)] => Some(template("", file, suffix)),
        [Piece::Text(prefix), Piece::File(file), Piece::Text(suffix)] => Some(template(prefix, file, suffix)),
        _ => {
            value.fail("more than one ${file:...}", "one file for each header");
            None
        }
    }
}

fn template(prefix: &str, file: &str, suffix: &str) -> HeaderSource {
    HeaderSource::Template { prefix: prefix.to_owned(), file: file.into(), suffix: suffix.to_owned() }
}

fn max_message_bytes(value: &Value<'_>) -> Option<u64> {
    let bytes = value.size()?;
    if !(1 << 10..=1 << 30).contains(&bytes) {
        value.fail(format!("{} is not between 1KiB and 1GiB", value.quoted()), "a stock Collector accepts 4MiB");
        return None;
    }
    Some(bytes)
}

fn positive(value: &Value<'_>) -> Option<Duration> {
    let duration = value.duration()?;
    if duration.is_zero() {
        value.fail("must be longer than zero", "");
        return None;
    }
    Some(duration)
}

fn retry(value: &Value<'_>) -> Option<Retry> {
    let retry = value.section(|section| {
        let default = Retry::default();
        let retry = Retry {
            initial_interval: section
                .take("initial_interval")
                .and_then(|v| positive(&v))
                .unwrap_or(default.initial_interval),
            max_interval: section.take("max_interval").and_then(|v| positive(&v)).unwrap_or(default.max_interval),
        };
        if let Some(value) = section.take("enabled")
            && value.truth() == Some(false)
        {
            value.fail("retries cannot be turned off", "remove it: what is not delivered is kept until queue.max_age");
        }
        section.refuse(
            "max_elapsed_time",
            "retries end with the retention",
            "write queue.max_age in defaults or a policy",
        );
        section.refuse("randomization_factor", "intervals are always fully random", "remove it");
        section.refuse("multiplier", "intervals always double", "remove it");
        retry
    })?;
    if retry.initial_interval > retry.max_interval {
        value.fail("initial_interval is above max_interval", "they are 1s and 30s unless given");
        return None;
    }
    Some(retry)
}

fn window(section: &mut Section<'_>) -> Option<usize> {
    let window = section.take("num_consumers").and_then(|value| value.count(1..=1024));
    for key in ["enabled", "queue_size", "sizer", "storage", "block_on_overflow", "wait_for_result", "batch"] {
        let help = "its space is limits.disk, its retention queue.max_age";
        section.refuse(key, "every tenant has its own queue, on disk", help);
    }
    window.and_then(|window| usize::try_from(window).ok())
}

fn allow(value: &Value<'_>) -> Vec<String> {
    let mut out = Vec::new();
    for item in value.items().unwrap_or_default() {
        let Some(text) = item.filled_text() else { continue };
        let label = text.len() <= 63 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if text == "*" || label {
            out.push(text);
        } else {
            item.fail(format!("{} is no namespace", item.quoted()), "write a namespace's name, or \"*\" for all");
        }
    }
    out
}

impl Default for Retry {
    fn default() -> Self {
        Self { initial_interval: Duration::from_secs(1), max_interval: Duration::from_secs(30) }
    }
}
