//! A request in, its answer out.

use std::hash::{BuildHasher, RandomState};

use http::header::{ACCEPT, HOST};
use http::{Method, Request, StatusCode};

use super::answer::{Answer, Kind, answer as respond, html as html_answer, json, method_not_allowed, text};
use super::guard::{self, Refusal};
use super::server::{Context, Ends};
use super::view::Report;
use super::{Readiness, html, metrics, process};

/// The page: one file, with its style and its script.
const PAGE: &str = include_str!("page.html");

/// In [`PAGE`], where the nonce belongs.
const NONCE: &str = "{{nonce}}";

/// What the 404 says.
const HINT: &str = "nothing here. Try / (the live page), /tenants, /sink, /metrics, /readyz or /livez";

/// Items of each signal that /sink may be asked for; it keeps no more than 200.
const ITEMS_MAX: usize = 200;

/// Answers one request; its body, if there is one, is ignored.
pub(super) async fn answer<B>(request: &Request<B>, ends: Ends, context: &Context) -> Answer {
    if let Err(refusal) = check_host(request, ends) {
        return refused(refusal, ends);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return method_not_allowed();
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "alive"),
        "/readyz" => readiness(&(context.sources.readiness)().await, wants_json(request)),
        "/metrics" => scrape(context),
        path @ ("/" | "/tenants" | "/sink") => match check_local(ends) {
            Ok(()) => local(path, request, context),
            Err(refusal) => refused(refusal, ends),
        },
        _ => text(StatusCode::NOT_FOUND, HINT),
    }
}

/// Nobody is misled to the admin socket: whoever connects to it has named it.
fn check_host<B>(request: &Request<B>, ends: Ends) -> Result<(), Refusal> {
    let Ends::Network { local, .. } = ends else { return Ok(()) };
    let host = request.uri().authority().map(http::uri::Authority::as_str);
    let host = host.or_else(|| request.headers().get(HOST).and_then(|host| host.to_str().ok()));
    guard::check_host(host, local)
}

fn check_local(ends: Ends) -> Result<(), Refusal> {
    match ends {
        Ends::Network { local, peer } => guard::check_local(local, peer),
        Ends::Socket => Ok(()),
    }
}

fn local<B>(path: &str, request: &Request<B>, context: &Context) -> Answer {
    match path {
        "/tenants" => {
            let report = Report::gather(&context.sources);
            if wants_json(request) {
                return json(StatusCode::OK, &report);
            }
            let nonce = nonce();
            html_answer(html::tenants(&report, &nonce), &nonce)
        }
        "/sink" => match (context.sources.sink)() {
            Some(sink) => json(StatusCode::OK, &sink.view(items(request))),
            None => text(
                StatusCode::NOT_FOUND,
                "there is no embedded sink: it is the destination of `pillion standalone` when none is given",
            ),
        },
        _ => {
            let nonce = nonce();
            html_answer(PAGE.replace(NONCE, &nonce), &nonce)
        }
    }
}

fn scrape(context: &Context) -> Answer {
    match metrics::encode(Report::gather(&context.sources), process::usage(), &context.series) {
        Ok(body) => respond(StatusCode::OK, Kind::OpenMetrics, body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("encoding the metrics: {error}")),
    }
}

fn readiness(readiness: &Readiness, as_json: bool) -> Answer {
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if as_json {
        return json(status, readiness);
    }
    let first = if readiness.ready { "ready" } else { "not ready" };
    let lines: Vec<_> = std::iter::once(first).chain(readiness.reasons.iter().map(String::as_str)).collect();
    text(status, lines.join("\n"))
}

fn refused(refusal: Refusal, ends: Ends) -> Answer {
    let local = match ends {
        Ends::Network { local, .. } => local.to_string(),
        Ends::Socket => "of the socket".to_owned(),
    };
    match refusal {
        Refusal::NoHost => text(StatusCode::BAD_REQUEST, "a Host header is required"),
        Refusal::ForeignHost => text(
            StatusCode::MISDIRECTED_REQUEST,
            format!("the Host header names somebody else: use localhost, or the address {local}"),
        ),
        Refusal::NotLocal => text(
            StatusCode::FORBIDDEN,
            "this shows what pods sent, so only on a loopback address or the admin socket: use `kubectl port-forward`, or an SSH tunnel",
        ),
    }
}

fn wants_json<B>(request: &Request<B>) -> bool {
    if let Some(format) = parameter(request, "format") {
        return format == "json";
    }
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|range| range.split(';').next().is_some_and(|kind| kind.trim() == "application/json"))
}

fn items<B>(request: &Request<B>) -> usize {
    parameter(request, "items").and_then(|items| items.parse().ok()).unwrap_or(0).min(ITEMS_MAX)
}

/// A value of the query.
pub(super) fn parameter<'a, B>(request: &'a Request<B>, name: &str) -> Option<&'a str> {
    let query = request.uri().query()?;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// 128 bits that nobody can guess: the hasher's keys come from the operating system's randomness.
fn nonce() -> String {
    let state = RandomState::new();
    format!("{:016x}{:016x}", state.hash_one(0u8), state.hash_one(1u8))
}

#[cfg(test)]
mod tests;
