//! The floor: OTLP/gRPC in and out over the `h2` crate on one single-threaded runtime, nothing validated or enriched.
//!
//! ```text
//! merged        requests wait for each other until MERGED_BYTES are there or nothing else is, then leave as one;
//!               each is answered at once, before it is sent on (as ack memory does)
//! one for one   each leaves as it came, and is answered at once
//! durable       as merged, and a group is written and fdatasynced before its requests are answered
//! ```

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};

use crate::client;

/// Requests up to this size together leave as one.
const MERGED_BYTES: usize = 1 << 20;

/// Requests that may be on their way out at once.
const WINDOW: usize = 8;

/// Which of the floors.
#[derive(Debug, Clone)]
pub enum Mode {
    /// Small requests leave together.
    Merged,
    /// Each request leaves alone.
    OneForOne,
    /// Merged, and on disk before the answer.
    Durable(PathBuf),
}

#[derive(Default)]
struct Node {
    waiting: RefCell<VecDeque<Entry>>,
    arrived: Notify,
}

struct Entry {
    payload: Bytes,
    /// Answered after the write, in the durable mode.
    respond: Option<SendResponse<Bytes>>,
}

/// Serves on `listener` and forwards to `backend`, until the process is killed.
pub fn run(listener: TcpListener, backend: SocketAddr, mode: Mode) -> Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let node = Rc::new(Node::default());
        let mut tasks = JoinSet::new();
        let forwarder = node.clone();
        let for_intake = matches!(mode, Mode::Durable(_));
        tasks.spawn_local(async move { forward(&forwarder, backend, mode).await });
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, node) = (accepted?.0, node.clone());
                    tasks.spawn_local(async move { drop(intake(stream, &node, for_intake).await); Ok(()) });
                }
                Some(ended) = tasks.join_next() => ended??,
            }
        }
    })
}

async fn intake(stream: TcpStream, node: &Rc<Node>, wait: bool) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .handshake(stream)
        .await?;
    let mut streams = JoinSet::new();
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        let node = node.clone();
        streams.spawn_local(async move { drop(receive(request, respond, &node, wait).await) });
        while streams.try_join_next().is_some() {}
    }
    Ok(())
}

async fn receive(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    node: &Node,
    wait: bool,
) -> Result<()> {
    let mut body = request.into_body();
    let mut message = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        message.extend_from_slice(&chunk);
    }
    let payload = message.freeze().slice(5..);
    if !wait {
        answer(&mut respond)?;
    }
    node.waiting.borrow_mut().push_back(Entry { payload, respond: wait.then_some(respond) });
    node.arrived.notify_one();
    Ok(())
}

fn answer(respond: &mut SendResponse<Bytes>) -> Result<()> {
    let response = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(Bytes::from_static(&[0; 5]), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)?;
    Ok(())
}

async fn forward(node: &Node, backend: SocketAddr, mode: Mode) -> Result<()> {
    let connection = Rc::new(client::Connection::open(backend).await.context("connecting to the backend")?);
    let (merge, mut log) = match mode {
        Mode::Merged => (MERGED_BYTES, None),
        Mode::OneForOne => (0, None),
        Mode::Durable(path) => (MERGED_BYTES, Some(File::create(path).context("creating the log")?)),
    };
    let mut sending = JoinSet::new();
    loop {
        while node.waiting.borrow().is_empty() {
            node.arrived.notified().await;
        }
        while sending.len() >= WINDOW {
            sending.join_next().await.context("the window is not empty")??;
        }
        let group = take_group(&mut node.waiting.borrow_mut(), merge);
        if let Some(log) = &mut log {
            commit(log, &group)?;
        }
        let framed = merged(&group);
        for mut respond in group.into_iter().filter_map(|entry| entry.respond) {
            answer(&mut respond)?;
        }
        let connection = connection.clone();
        sending.spawn_local(async move { drop(connection.export(client::TRACES, framed).await) });
    }
}

fn take_group(waiting: &mut VecDeque<Entry>, merge: usize) -> Vec<Entry> {
    let mut bytes = 0;
    let mut group = Vec::new();
    while let Some(entry) = waiting.pop_front() {
        bytes += entry.payload.len();
        group.push(entry);
        if waiting.front().is_none_or(|next| bytes + next.payload.len() > merge) {
            break;
        }
    }
    group
}

/// One write and one fdatasync for the group; the file is rewound so that its blocks stay allocated.
fn commit(log: &mut File, group: &[Entry]) -> Result<()> {
    use std::io::Seek;
    if log.stream_position()? > 64 << 20 {
        log.rewind()?;
    }
    for entry in group {
        log.write_all(&entry.payload)?;
    }
    Ok(log.sync_data()?)
}

fn merged(group: &[Entry]) -> Bytes {
    let length: usize = group.iter().map(|entry| entry.payload.len()).sum();
    let mut out = BytesMut::with_capacity(5 + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).expect("a group is at most a few MiB"));
    for entry in group {
        out.extend_from_slice(&entry.payload);
    }
    out.freeze()
}
