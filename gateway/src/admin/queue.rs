//! What `pillion queue` asks: the queue in rows, a dead letter's data, and what is to become of dead letters.
//!
//! The same functions answer on the admin socket of a gateway that runs and in a tool that has opened a data directory at rest,
//! so both say the same. They block; the socket calls them on a thread that may.
//!
//! ```text
//! GET  /queue                          tenants, and what waits for each destination
//! GET  /queue/letters?after=ID         dead letters without their data, a page at a time
//! GET  /queue/letter?id=ID             the data of one: a serialised Export*ServiceRequest
//! POST /queue/replay, /queue/purge     {"letters": [ID, ...]}  ->  {"changed": n}, durable when answered
//! ```

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};

use super::answer::{Answer, Kind, answer as respond, json, method_not_allowed, text};
use super::route::parameter;
use super::server::{Context, Ends};
use crate::base::{Sequence, Signal, TenantId};
use crate::queue::{self, AppendError, DeadLetter, LetterChange, Queue, Verdict};

/// Dead letters of a page.
const PAGE_ROWS_MAX: usize = 500;

/// Of their data, which is read to be checked.
const PAGE_BYTES_MAX: usize = 64 << 20;

/// Of a request that names dead letters.
const BODY_BYTES_MAX: usize = 1 << 20;

/// The queue of a gateway that runs, and how its exporter is told that letters are to be sent again.
pub struct Tools {
    /// The queue.
    pub queue: Queue,
    /// Quick, and does not block.
    pub replay: Box<dyn Fn() + Send + Sync>,
}

/// Which dead letter: `TENANT-SEQUENCE`, both as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LetterId {
    /// Whose.
    pub tenant: TenantId,
    /// Where in the log.
    pub sequence: Sequence,
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.tenant.0, self.sequence.0)
    }
}

impl FromStr for LetterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (tenant, sequence) = text.split_once('-')?;
            Some(Self { tenant: TenantId(tenant.parse().ok()?), sequence: Sequence(sequence.parse().ok()?) })
        };
        parse().ok_or_else(|| {
            format!("{text:?} is no dead letter's id: they look like 3-1099511627790, see `pillion queue inspect`")
        })
    }
}

impl Serialize for LetterId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LetterId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// All tenants of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overview {
    /// In the order of their numbers.
    pub tenants: Vec<TenantRow>,
}

/// One of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TenantRow {
    /// Its number in the log.
    pub number: u32,
    /// namespace/pod
    pub tenant: String,
    /// Of the pod.
    pub pod_uid: Option<String>,
    /// Where its data goes.
    pub destinations: Vec<DestinationRow>,
    /// How many are kept.
    pub dead_letters: u64,
}

/// What waits for one destination.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DestinationRow {
    /// Its name.
    pub destination: String,
    /// Items.
    pub spans: u64,
    /// Items.
    pub metric_points: u64,
    /// Items.
    pub log_records: u64,
    /// Records of the log.
    pub records: u64,
    /// Their payload.
    pub bytes: u64,
    /// How long ago the oldest was appended, on the log's clock.
    pub oldest_age_ms: Option<u64>,
}

/// A dead letter, without its data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LetterRow {
    /// To name it by.
    pub id: LetterId,
    /// namespace/pod
    pub tenant: String,
    /// Of the pod.
    pub pod_uid: Option<String>,
    /// Who refused it.
    pub destination: String,
    /// traces, metrics, logs
    pub signal: String,
    /// In it.
    pub items: u32,
    /// Of its data.
    pub bytes: u64,
    /// `gRPC 3`, `HTTP 400`, or `-` if it never came to an answer.
    pub status: String,
    /// The refusal in words.
    pub message: String,
    /// How often it was refused.
    pub attempts: u32,
    /// How long ago, on the log's clock, it was refused for the first and for the last time.
    pub first_age_ms: u64,
    /// See `first_age_ms`.
    pub last_age_ms: u64,
    /// How long ago the data was accepted.
    pub data_age_ms: u64,
    /// It is to be sent again as soon as that is possible.
    pub replay: bool,
}

/// Some of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Page {
    /// In the order of their ids.
    pub letters: Vec<LetterRow>,
    /// Where the next page begins, if there is one.
    pub next: Option<LetterId>,
}

/// What is to be changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chosen {
    /// By id.
    pub letters: Vec<LetterId>,
}

/// What was changed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Changed {
    /// Letters.
    pub changed: u32,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The writer's.
    #[error("{0}")]
    Queue(#[from] AppendError),
    /// The disk's.
    #[error("reading the log: {0}")]
    Io(#[from] std::io::Error),
}

/// Tenants and what waits for each destination. Blocking.
pub fn overview(queue: &Queue) -> Result<Overview, Trouble> {
    let now = queue.now_unix_ms();
    let rows = queue.tenants()?.into_iter().map(|tenant| {
        let destinations = queue.backlog(&tenant)?.into_iter().map(|backlog| {
            let [spans, metric_points, log_records] = backlog.items;
            DestinationRow {
                destination: backlog.destination.to_string(),
                spans,
                metric_points,
                log_records,
                records: backlog.records,
                bytes: backlog.bytes,
                oldest_age_ms: backlog.oldest_unix_ms.map(|oldest| now.saturating_sub(oldest)),
            }
        });
        Ok(TenantRow {
            number: tenant.id.0,
            tenant: tenant.record.name.to_string(),
            pod_uid: tenant.record.pod_uid.clone(),
            destinations: destinations.collect(),
            dead_letters: tenant.letters.len() as u64,
        })
    });
    Ok(Overview { tenants: rows.collect::<Result<_, Trouble>>()? })
}

/// The dead letters after one of them. What is damaged is left out; it is counted where all damage is. Blocking.
pub fn letters(queue: &Queue, after: Option<LetterId>) -> Result<Page, Trouble> {
    let now = queue.now_unix_ms();
    let mut page = Page { letters: Vec::new(), next: None };
    let mut bytes = 0;
    for tenant in queue.tenants()? {
        for kept in &tenant.letters {
            let id = LetterId { tenant: tenant.id, sequence: kept.sequence };
            if after.is_some_and(|after| id <= after) {
                continue;
            }
            if page.letters.len() >= PAGE_ROWS_MAX || bytes >= PAGE_BYTES_MAX {
                page.next = page.letters.last().map(|last| last.id);
                return Ok(page);
            }
            if let Some(letter) = queue.letter(tenant.id, kept.sequence)? {
                bytes += letter.payload.len();
                page.letters.push(row(id, &tenant, (&letter, kept.again), now));
            }
        }
    }
    Ok(page)
}

fn row(id: LetterId, tenant: &queue::TenantView, (letter, replay): (&DeadLetter, bool), now: u64) -> LetterRow {
    LetterRow {
        id,
        tenant: tenant.record.name.to_string(),
        pod_uid: tenant.record.pod_uid.clone(),
        destination: letter.destination.to_string(),
        signal: letter.signal.name().to_owned(),
        items: letter.items,
        bytes: letter.payload.len() as u64,
        status: match letter.answer {
            None => "-".to_owned(),
            Some(queue::Answer::Grpc(code)) => format!("gRPC {code}"),
            Some(queue::Answer::Http(code)) => format!("HTTP {code}"),
        },
        message: letter.reason.clone(),
        attempts: letter.attempts,
        first_age_ms: now.saturating_sub(letter.first_unix_ms),
        last_age_ms: now.saturating_sub(letter.last_unix_ms),
        data_age_ms: now.saturating_sub(letter.appended_unix_ms),
        replay,
    }
}

/// The data of a dead letter, and what it is; `None` if it is gone. Blocking.
pub fn data(queue: &Queue, id: LetterId) -> Result<Option<(Signal, Bytes)>, Trouble> {
    Ok(queue.letter(id.tenant, id.sequence)?.map(|letter| (letter.signal, letter.payload)))
}

/// Decides about dead letters, durably. Blocking.
pub fn change(queue: &Queue, chosen: &Chosen, verdict: Verdict) -> Result<Changed, Trouble> {
    let letters = chosen.letters.iter().map(|id| (id.tenant, id.sequence)).collect();
    Ok(Changed { changed: queue.change_letters(LetterChange { letters, verdict })? })
}

/// Whether a request is for here.
pub(super) fn is_asked<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    path == "/queue" || path.starts_with("/queue/")
}

/// Answers one, on the admin socket only.
pub(super) async fn answer(request: Request<Incoming>, ends: Ends, context: &Context) -> Answer {
    if !matches!(ends, Ends::Socket) {
        let words = "this shows and changes what pods sent, so only on the admin socket in the data directory: use `pillion queue`";
        return text(StatusCode::FORBIDDEN, words);
    }
    let Some(tools) = (context.sources.tools)() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the gateway is starting: its queue is not open yet");
    };
    let queue = tools.queue;
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET, "/queue") => told(blocking(move || overview(&queue)).await),
        (&Method::GET, "/queue/letters") => match id(&request, "after") {
            Ok(after) => told(blocking(move || letters(&queue, after)).await),
            Err(words) => text(StatusCode::BAD_REQUEST, words),
        },
        (&Method::GET, "/queue/letter") => match id(&request, "id") {
            Ok(Some(id)) => match blocking(move || data(&queue, id)).await {
                Ok(Some((_, data))) => respond(StatusCode::OK, Kind::Protobuf, data),
                Ok(None) => text(
                    StatusCode::NOT_FOUND,
                    format!("there is no dead letter {id}: it was dropped, purged or replayed"),
                ),
                Err(words) => text(StatusCode::INTERNAL_SERVER_ERROR, words),
            },
            Ok(None) => text(StatusCode::BAD_REQUEST, "?id= is missing"),
            Err(words) => text(StatusCode::BAD_REQUEST, words),
        },
        (&Method::POST, "/queue/replay" | "/queue/purge") => {
            let verdict = if path == "/queue/replay" { Verdict::Again } else { Verdict::Gone };
            let chosen = match body(request).await {
                Ok(chosen) => chosen,
                Err(words) => return text(StatusCode::BAD_REQUEST, words),
            };
            let changed = blocking(move || change(&queue, &chosen, verdict)).await;
            if verdict == Verdict::Again {
                (tools.replay)();
            }
            told(changed)
        }
        (&Method::GET | &Method::POST, _) => text(StatusCode::NOT_FOUND, "nothing here: see `pillion queue --help`"),
        _ => method_not_allowed(),
    }
}

fn told<T: Serialize>(outcome: Result<T, String>) -> Answer {
    match outcome {
        Ok(value) => json(StatusCode::OK, &value),
        Err(words) => text(StatusCode::INTERNAL_SERVER_ERROR, words),
    }
}

async fn blocking<T: Send + 'static>(ask: impl FnOnce() -> Result<T, Trouble> + Send + 'static) -> Result<T, String> {
    match tokio::task::spawn_blocking(ask).await {
        Ok(outcome) => outcome.map_err(|trouble| trouble.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn id<B>(request: &Request<B>, name: &str) -> Result<Option<LetterId>, String> {
    parameter(request, name).map(str::parse).transpose()
}

async fn body(request: Request<Incoming>) -> Result<Chosen, String> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())
}
