//! A backend for tests: OTLP/gRPC and OTLP/HTTP protobuf on one port; keeps what it is told to, fails as it is told to.
//!
//! Runs on a thread of its own and ends when dropped.

mod serve;

use std::collections::HashMap;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::sync::watch;

use crate::payload;

/// What is kept of a request that was answered with OK.
#[derive(Debug, Clone)]
pub enum Keep {
    /// Only the number of requests and bytes.
    Nothing,
    /// The id of each span with the value of this resource attribute.
    TraceIds(String),
    /// The whole of it.
    Payloads,
    /// Nothing here: it is handed on, before it is answered.
    Hand(Taker),
}

/// Takes a request over; one that it does not understand is answered as invalid.
#[derive(Clone)]
pub struct Taker(Arc<Take>);

type Take = dyn Fn(&Received) -> Result<(), Invalid> + Send + Sync;

/// A request that the taker does not understand.
#[derive(Debug)]
struct Invalid;

impl Taker {
    /// `take` runs on the sink's thread.
    pub fn new<E>(take: impl Fn(&Received) -> Result<(), E> + Send + Sync + 'static) -> Self {
        Self(Arc::new(move |received| take(received).map_err(|_| Invalid)))
    }
}

impl fmt::Debug for Taker {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Taker")
    }
}

/// How requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// OK.
    None,
    /// UNAVAILABLE, or 503.
    Unavailable,
    /// UNAUTHENTICATED, or 401.
    Unauthenticated,
    /// INVALID_ARGUMENT, or 400.
    Invalid,
    /// The connection is closed without an answer.
    Drop,
}

/// When requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// At once.
    Now,
    /// This long after they are complete.
    After(Duration),
    /// Not before the pace is another.
    Held,
}

impl Fault {
    const ALL: [Self; 5] = [Self::None, Self::Unavailable, Self::Unauthenticated, Self::Invalid, Self::Drop];

    /// The gRPC status and the HTTP status of the answer.
    fn statuses(self) -> (u32, u16) {
        match self {
            Self::None => (0, 200),
            Self::Unavailable | Self::Drop => (14, 503),
            Self::Unauthenticated => (16, 401),
            Self::Invalid => (3, 400),
        }
    }
}

/// A request that was kept whole.
#[derive(Debug, Clone)]
pub struct Received {
    /// The path it came to, gRPC's or HTTP's.
    pub path: String,
    /// Its headers, lowercase names.
    pub headers: Vec<(String, String)>,
    /// The serialised `Export*ServiceRequest`.
    pub payload: Bytes,
}

/// Ids seen so far, with how often and under which attribute values.
pub type Ids = HashMap<u64, Seen>;

/// One id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// How often it arrived.
    pub times: u32,
    /// The attribute's value when it first arrived.
    pub owner: String,
    /// Whether it arrived under another value as well.
    pub disputed: bool,
}

/// A running sink.
#[derive(Debug)]
pub struct Sink {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    pace: watch::Sender<Pace>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    keep: Keep,
    fault: AtomicU8,
    pace: watch::Receiver<Pace>,
    requests: AtomicU64,
    refused: AtomicU64,
    bytes: AtomicU64,
    kept: Mutex<Kept>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Kept {
    ids: Ids,
    payloads: Vec<Received>,
}

impl Sink {
    /// Serves on `address`; port 0 chooses one.
    pub fn start(address: SocketAddr, keep: Keep) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("binding the sink to {address}"))?;
        Self::on(listener, keep)
    }

    /// Serves on a listener that exists.
    pub fn on(listener: TcpListener, keep: Keep) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (pace, for_shared) = watch::channel(Pace::Now);
        let shared = Arc::new(Shared {
            keep,
            fault: AtomicU8::new(Fault::None as u8),
            pace: for_shared,
            requests: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            kept: Mutex::default(),
            changed: Condvar::new(),
        });
        let (stop, stopped) = watch::channel(false);
        let for_thread = shared.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name("sink".into())
            .spawn(move || runtime.block_on(serve::accept(listener, for_thread, stopped)))?;
        Ok(Self { shared, address, stop, pace, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers from now on like this.
    pub fn fail_with(&self, fault: Fault) {
        self.shared.fault.store(fault as u8, Ordering::SeqCst);
    }

    /// Answers from now on at this pace; requests that wait are in it too.
    pub fn answer(&self, pace: Pace) {
        self.pace.send_replace(pace);
    }

    /// Requests answered with OK.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Requests answered with anything else.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::SeqCst)
    }

    /// Bytes of the bodies of requests answered with OK, as they came: before decompression, with gRPC's prefix.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    /// The ids so far.
    pub fn ids(&self) -> Ids {
        self.shared.kept().ids.clone()
    }

    /// The number of different ids so far.
    pub fn distinct(&self) -> usize {
        self.shared.kept().ids.len()
    }

    /// The requests so far.
    pub fn payloads(&self) -> Vec<Received> {
        self.shared.kept().payloads.clone()
    }

    /// Waits until `done` says so of what was kept; looks again after each request. False when that takes longer than
    /// `patience`, which is meant for a test that has failed.
    pub fn wait_until(&self, patience: Duration, mut done: impl FnMut(&Ids, &[Received]) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut kept = self.shared.kept();
        loop {
            if done(&kept.ids, &kept.payloads) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            kept = self.shared.changed.wait_timeout(kept, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until so many requests were refused.
    pub fn wait_until_refused(&self, patience: Duration, requests: u64) -> bool {
        self.wait_until(patience, |_, _| self.refused() >= requests)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn fault(&self) -> Fault {
        let number = self.fault.load(Ordering::SeqCst);
        Fault::ALL.into_iter().find(|fault| *fault as u8 == number).unwrap_or(Fault::None)
    }

    /// Returns when a request that is complete may be answered.
    async fn paced(&self) {
        let mut pace = self.pace.clone();
        let now = *pace.borrow_and_update();
        match now {
            Pace::Now => {}
            Pace::After(delay) => tokio::time::sleep(delay).await,
            // The sink is gone: so is the request.
            Pace::Held => drop(pace.wait_for(|pace| *pace != Pace::Held).await),
        }
    }

    /// Answers one request, whose body had that length on its way: keeps it and says how.
    fn take(&self, received: Received, length: usize) -> Fault {
        let fault = match self.fault() {
            Fault::None => self.keep(received, length).map_or(Fault::Invalid, |()| Fault::None),
            fault => fault,
        };
        let counter = if fault == Fault::None { &self.requests } else { &self.refused };
        counter.fetch_add(1, Ordering::SeqCst);
        // Under the lock, or a waiter that has just looked would miss it.
        drop(self.kept());
        self.changed.notify_all();
        fault
    }

    fn keep(&self, received: Received, length: usize) -> Result<(), Invalid> {
        self.bytes.fetch_add(length as u64, Ordering::SeqCst);
        match &self.keep {
            Keep::Nothing => {}
            Keep::Payloads => self.kept().payloads.push(received),
            Keep::Hand(taker) => taker.0(&received)?,
            Keep::TraceIds(key) => {
                let ids = payload::trace_ids(&received.payload, key).map_err(|_| Invalid)?;
                let mut kept = self.kept();
                for (id, owner) in ids {
                    let seen = kept.ids.entry(id).or_insert_with(|| Seen { owner: owner.clone(), ..Seen::default() });
                    seen.times += 1;
                    seen.disputed |= seen.owner != owner;
                }
            }
        }
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{self, Connection};

    /// Scenario: good requests, then one while the sink refuses, then a good one again.
    /// Guarantees: what was answered with OK is kept, once; what was refused is not; faults are told as gRPC statuses.
    #[tokio::test]
    async fn it_keeps_what_it_acknowledges_and_nothing_else() {
        let sink = Sink::start("127.0.0.1:0".parse().unwrap(), Keep::TraceIds("service.name".into())).unwrap();
        let connection = Connection::open(sink.address()).await.unwrap();
        let send = async |ids: &[u64]| {
            let framed = client::frame(&payload::traces("cart", ids));
            connection.export(client::TRACES, framed).await.unwrap().status
        };

        assert_eq!(send(&[1, 2]).await, 0);
        sink.fail_with(Fault::Unavailable);
        assert_eq!(send(&[3]).await, 14);
        sink.fail_with(Fault::None);
        assert_eq!(send(&[2]).await, 0);

        let ids = sink.ids();
        assert_eq!((ids[&1].times, ids[&2].times, ids.contains_key(&3)), (1, 2, false));
        assert_eq!((ids[&1].owner.as_str(), sink.requests(), sink.refused()), ("cart", 2, 1));
    }

    /// Scenario: a compressed request.
    /// Guarantees: what is counted is what came, not what it decompresses to.
    #[test]
    fn bytes_are_counted_as_they_came() {
        let sink = Sink::start("127.0.0.1:0".parse().unwrap(), Keep::Payloads).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let message = payload::traces("cart", &(1..100).collect::<Vec<_>>());
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        std::io::Write::write_all(&mut encoder, &message).unwrap();
        let body = encoder.finish().unwrap();
        let expected = body.len() as u64;
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(sink.address()).await.unwrap();
            let io = hyper_util::rt::TokioIo::new(stream);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            let request = http::Request::post("/v1/traces").header("host", "x").header("content-encoding", "gzip");
            let request = request.body(http_body_util::Full::new(Bytes::from(body))).unwrap();
            let mut driver = tokio::task::JoinSet::new();
            driver.spawn(connection);
            assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
        });
        assert_eq!(sink.payloads()[0].payload, message);
        assert_eq!(sink.bytes(), expected);
    }
}
