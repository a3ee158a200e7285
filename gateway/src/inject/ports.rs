//! The shim's ports, and who else wants them.
//!
//! Once the shim holds 127.0.0.1:4317, an application that binds 0.0.0.0:4317 is refused, SO_REUSEADDR or not. Opting a namespace in
//! must not crash the collectors, Jaegers and Tempos in it, so a declared port is left to its owner.

use serde_json::Value;

use super::pod::{self, Pod};
use super::{GRPC_PORT, HTTP_PORT, Namespace, Reason};

const GRPC_DEFAULT: u16 = 4317;
const HTTP_DEFAULT: u16 = 4318;
/// The shim has no capability: lower ones are not its to bind.
const PORT_MIN: u16 = 1024;
const COLLECTOR: &str = "sidecar.opentelemetry.io/inject";

/// What the shim binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) grpc: u16,
    pub(super) http: u16,
    /// By an annotation: then the shim and its volume are told.
    pub(super) is_chosen: bool,
}

impl Ports {
    fn has(&self, port: u64) -> bool {
        [self.grpc, self.http].into_iter().any(|own| u64::from(own) == port)
    }
}

/// Reads the annotations.
pub(super) fn chosen(pod: &Pod<'_>) -> Result<Ports, Reason> {
    let grpc = port(pod, GRPC_PORT)?;
    let http = port(pod, HTTP_PORT)?;
    let ports = Ports {
        grpc: grpc.unwrap_or(GRPC_DEFAULT),
        http: http.unwrap_or(HTTP_DEFAULT),
        is_chosen: grpc.or(http).is_some(),
    };
    if ports.grpc == ports.http { Err(Reason::EqualPorts(ports.grpc)) } else { Ok(ports) }
}

/// Digits only, no sign and no leading zero: what CEL's expression takes as well.
fn port(pod: &Pod<'_>, annotation: &'static str) -> Result<Option<u16>, Reason> {
    let Some(text) = pod.annotation(annotation) else { return Ok(None) };
    let is_plain = text.starts_with(|c: char| matches!(c, '1'..='9')) && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if is_plain && port >= PORT_MIN => Ok(Some(port)),
        _ => Err(Reason::BadPort { annotation, value: text.to_owned() }),
    }
}

/// Whether nobody in the pod declares one of the ports.
pub(super) fn check_free(pod: &Pod<'_>, namespace: &Namespace, ports: &Ports) -> Result<(), Reason> {
    let wants_defaults = ports.has(GRPC_DEFAULT.into()) || ports.has(HTTP_DEFAULT.into());
    if wants_defaults && is_collector_asked(pod, namespace) {
        return Err(Reason::CollectorAsked);
    }
    for container in pod.all_containers() {
        let declared = container.get("ports").and_then(Value::as_array).into_iter().flatten();
        let is_tcp =
            |port: &&Value| port.get("protocol").and_then(Value::as_str).is_none_or(|protocol| protocol == "TCP");
        let taken = declared
            .filter(is_tcp)
            .filter_map(|port| port.get("containerPort")?.as_u64())
            .find(|port| ports.has(*port));
        if let Some(port) = taken.and_then(|port| u16::try_from(port).ok()) {
            let container = pod::name(container).unwrap_or_default().to_owned();
            return Err(Reason::PortTaken { container, port });
        }
    }
    Ok(())
}

/// The OpenTelemetry operator reads the pod's annotation, and the namespace's where the pod has none; a name means a collector.
fn is_collector_asked(pod: &Pod<'_>, namespace: &Namespace) -> bool {
    let own = pod.annotation(COLLECTOR).filter(|word| !word.is_empty());
    let word = own.or_else(|| namespace.annotations.get(COLLECTOR).map(String::as_str)).unwrap_or_default();
    !word.is_empty() && !word.eq_ignore_ascii_case("false")
}
