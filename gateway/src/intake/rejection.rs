//! Why a request was refused, wherever on its way that was decided.

use std::borrow::Cow;
use std::time::Duration;

use crate::base::stats::Refusal;
use crate::tenant::Refused;

/// Everything that a request can end with but success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejection {
    /// The tenant does not take it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// gRPC framing or compression that cannot be read.
    #[error("{0}")]
    Malformed(Cow<'static, str>),
    /// A gRPC service or method that is not served.
    #[error(
        "this gateway serves Export of opentelemetry.proto.collector.{{trace,metrics,logs}}.v1, not the method that was called"
    )]
    UnknownMethod,
    /// An HTTP path that is not served.
    #[error("this gateway serves /v1/traces, /v1/metrics and /v1/logs, not the path that was asked for")]
    UnknownPath,
    /// Not POST.
    #[error("OTLP/HTTP requests are sent with POST")]
    NotPost,
    /// A body that is not protobuf.
    #[error("the content type must be application/x-protobuf, or application/grpc over HTTP/2")]
    UnknownMediaType,
    /// A body that is JSON.
    #[error("OTLP/JSON is not accepted yet: set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf or grpc")]
    Json,
    /// A compression that is not known.
    #[error("the compression must be one of gzip, zstd, deflate, or none")]
    UnknownEncoding,
    /// The body did not arrive in time.
    #[error("the request's body did not arrive within its deadline")]
    Late,
    /// The peer took the request back, or is gone. Nobody reads a reply.
    #[error("the peer is gone")]
    Abandoned,
}

impl Rejection {
    pub(super) fn malformed(words: impl Into<Cow<'static, str>>) -> Self {
        Self::Malformed(words.into())
    }

    /// When a retry makes sense; `None` when never.
    pub(super) fn delay(&self) -> Option<Duration> {
        match self {
            Self::Refused(refused) => refused.delay(),
            // Somebody was slow, not wrong.
            Self::Late => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The counter it belongs to.
    pub(super) fn reason(&self) -> Refusal {
        match self {
            Self::Refused(refused) => refused.reason(),
            Self::Malformed(_) | Self::Late | Self::Abandoned => Refusal::Malformed,
            Self::UnknownMethod
            | Self::UnknownPath
            | Self::NotPost
            | Self::UnknownMediaType
            | Self::Json
            | Self::UnknownEncoding => Refusal::Unsupported,
        }
    }

    /// In words, for the reply and for /tenants. Allocates only where there is something particular to say.
    pub(super) fn words(&self) -> Cow<'static, str> {
        match self {
            Self::Malformed(words) => words.clone(),
            other => other.to_string().into(),
        }
    }
}
