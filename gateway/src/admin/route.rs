//! A request in, its answer out.

use http::header::HOST;
use http::{Method, Request, StatusCode};

use super::Readiness;
use super::answer::{Answer, json, method_not_allowed, text};
use super::guard::{self, Refusal};
use super::server::{Context, Ends};

/// What the 404 says.
const HINT: &str = "nothing here. Try /livez, /readyz, /metrics";

/// Answers one request; the body, if there is one, is ignored.
pub(super) async fn answer<B>(request: &Request<B>, ends: Ends, context: &Context) -> Answer {
    let host = request.uri().authority().map(http::uri::Authority::as_str);
    let host = host.or_else(|| request.headers().get(HOST).and_then(|host| host.to_str().ok()));
    if let Err(refusal) = guard::check_host(host, ends.local) {
        return refused(refusal, ends);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return method_not_allowed();
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "alive"),
        "/readyz" => readiness(&(context.sources.readiness)().await),
        _ => text(StatusCode::NOT_FOUND, HINT),
    }
}

fn readiness(readiness: &Readiness) -> Answer {
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, readiness)
}

fn refused(refusal: Refusal, ends: Ends) -> Answer {
    match refusal {
        Refusal::NoHost => text(StatusCode::BAD_REQUEST, "a Host header is required"),
        Refusal::ForeignHost => text(
            StatusCode::MISDIRECTED_REQUEST,
            format!("the Host header names somebody else: use localhost, or the address {}", ends.local),
        ),
        Refusal::NotLocal => text(
            StatusCode::FORBIDDEN,
            "this shows what pods sent, so only on a loopback address: use `kubectl port-forward`, or an SSH tunnel",
        ),
    }
}
