//! Asking a gateway that runs: HTTP/1.1 over its admin socket, one connection a question.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::Failed;
use crate::admin::SOCKET_NAME;

/// A page of dead letters may have to be read from a slow disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The way to a gateway.
#[derive(Debug)]
pub(super) struct Client {
    dir: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// Looks whether somebody answers there.
    pub(super) fn connect(dir: &Path) -> Result<Self, io::Error> {
        connect(dir)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { dir: dir.to_owned(), runtime })
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failed> {
        read(&self.ask(Method::GET, path, Bytes::new())?.1)
    }

    /// The bytes; `None`: there is nothing of that name.
    pub(super) fn data(&self, path: &str) -> Result<Option<Bytes>, Failed> {
        let (status, body) = self.ask(Method::GET, path, Bytes::new())?;
        Ok((status != StatusCode::NOT_FOUND).then_some(body))
    }

    pub(super) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl serde::Serialize) -> Result<T, Failed> {
        let body = serde_json::to_vec(body).map_err(|error| Failed::new(error.to_string()))?;
        read(&self.ask(Method::POST, path, body.into())?.1)
    }

    fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), Failed> {
        let failed = |error: &dyn std::fmt::Display| {
            Failed::new(format!(
                "the gateway does not answer on {}: {error}\n       is this its user, or root? it refuses everybody else",
                self.dir.join(SOCKET_NAME).display()
            ))
        };
        let answer = self.runtime.block_on(async {
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, exchange(&self.dir, method, path, body));
            answer.await.map_err(|_| "it takes too long".to_owned())?
        });
        let (status, body) = answer.map_err(|error| failed(&error))?;
        if status.is_success() || status == StatusCode::NOT_FOUND {
            return Ok((status, body));
        }
        Err(Failed::new(format!("the gateway refuses: {}", String::from_utf8_lossy(&body).trim_end())))
    }
}

async fn exchange(dir: &Path, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let stream = connect(dir).and_then(|stream| {
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    });
    let stream = stream.map_err(|error| text(&error))?;
    let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "pillion")
        .body(Full::new(body))
        .map_err(|error| text(&error))?;
    let answer = async {
        let (head, body) = client.send_request(request).await.map_err(|error| text(&error))?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| text(&error))?;
        Ok((head.status, body.to_bytes()))
    };
    tokio::pin!(answer);
    tokio::select! {
        biased;
        outcome = &mut answer => return outcome,
        // Its error is that of the request that is under way. A server may also close behind its last answer.
        _ = connection => {}
    }
    answer.await
}

/// Below a descriptor: paths may be longer than the 107 bytes of a socket's address.
fn connect(dir: &Path) -> io::Result<StdStream> {
    let dir = std::fs::File::open(dir)?;
    StdStream::connect(format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd()))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failed> {
    serde_json::from_slice(body).map_err(|error| Failed::new(format!("the gateway's answer cannot be read: {error}")))
}
