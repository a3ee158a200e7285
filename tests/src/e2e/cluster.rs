//! The cluster, through kubectl alone: `kubectl proxy` for what is asked often, the command itself for the rest.
//!
//! The proxy listens on a Unix socket, which also leads into a network namespace of its own; it ends with this object, or
//! when this process dies.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::wait::until;

/// One question to the API server.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(30);

/// The API.
#[derive(Debug)]
pub struct Cluster {
    via: Vec<String>,
    socket: PathBuf,
    proxy: Child,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts the proxy and waits until the API server answers.
    pub fn connect(via: &[String]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pillion-e2e-").tempdir()?;
        let socket = dir.path().join("api");
        // It ends when its standard input does: a prefix such as nsenter does not pass signals on.
        let script = "kubectl proxy --unix-socket=\"$0\" >/dev/null & proxy=$!; read -r _; kill $proxy";
        let proxy = command(via, &["sh", "-c", script])
            .arg(&socket)
            .stdin(Stdio::piped())
            .spawn()
            .context("starting kubectl proxy")?;
        let cluster = Self { via: via.to_vec(), socket, proxy, _dir: dir };
        until("the API server answers", Duration::from_secs(30), || cluster.text("/readyz"))?;
        Ok(cluster)
    }

    /// Runs kubectl; its output.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut words = vec!["kubectl"];
        words.extend(arguments);
        run(command(&self.via, &words), input)
    }

    /// GET of an object or a list.
    pub fn get(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(path)?)?)
    }

    /// GET; an error unless the status is 200.
    pub fn text(&self, path: &str) -> Result<String> {
        let (status, body) = self.request("GET", path, None)?;
        ensure!(status == 200, "GET {path}: {status} {}", message(&body));
        Ok(body)
    }

    /// Whether an object exists.
    pub fn exists(&self, path: &str) -> Result<bool> {
        match self.request("GET", path, None)? {
            (200, _) => Ok(true),
            (404, _) => Ok(false),
            (status, body) => bail!("GET {path}: {status} {}", message(&body)),
        }
    }

    /// POST into a collection; an error tells what the API server said.
    pub fn create(&self, collection: &str, object: &Value) -> Result<()> {
        let (status, body) = self.request("POST", collection, Some(("application/json", object.to_string())))?;
        ensure!((200..300).contains(&status), "POST {collection}: {status} {}", message(&body));
        Ok(())
    }

    /// What the API server would make of an object, admission included.
    pub fn dry_run(&self, collection: &str, object: &Value) -> Result<Value> {
        let body = Some(("application/json", object.to_string()));
        let (status, body) = self.request("POST", &format!("{collection}?dryRun=All"), body)?;
        ensure!((200..300).contains(&status), "POST {collection}: {status} {}", message(&body));
        Ok(serde_json::from_str(&body)?)
    }

    /// A strategic merge patch.
    pub fn patch(&self, path: &str, patch: &Value) -> Result<()> {
        let body = Some(("application/strategic-merge-patch+json", patch.to_string()));
        let (status, body) = self.request("PATCH", path, body)?;
        ensure!(status == 200, "PATCH {path}: {status} {}", message(&body));
        Ok(())
    }

    /// DELETE; what is gone already is no error. `grace` in seconds, the object's own if none.
    pub fn delete(&self, path: &str, grace: Option<u32>) -> Result<()> {
        let grace = grace.map(|seconds| format!("?gracePeriodSeconds={seconds}")).unwrap_or_default();
        let (status, body) = self.request("DELETE", &format!("{path}{grace}"), None)?;
        ensure!((200..300).contains(&status) || status == 404, "DELETE {path}: {status} {}", message(&body));
        Ok(())
    }

    /// Reads a watch, line by line, until `done` says so or `patience` is over.
    pub fn watch(&self, path: &str, patience: Duration, mut done: impl FnMut(Value) -> bool) -> Result<()> {
        let socket = self.socket.clone();
        let reading = async {
            let mut answer = Answer::to(&socket, "GET", path, None).await?;
            let mut unread = Vec::new();
            loop {
                let frame = answer.body.frame().await.context("the watch ended")??;
                unread.extend_from_slice(&frame.into_data().unwrap_or_default());
                while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = unread.drain(..=end).collect();
                    if done(serde_json::from_slice(&line)?) {
                        return Ok(());
                    }
                }
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(patience, reading).await }).context("the watch took too long")?
    }

    fn request(&self, method: &str, path: &str, body: Option<(&str, String)>) -> Result<(u16, String)> {
        let asking = async {
            let answer = Answer::to(&self.socket, method, path, body).await?;
            let bytes = answer.body.collect().await?.to_bytes();
            Ok((answer.status, String::from_utf8_lossy(&bytes).into_owned()))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(QUESTION_TIMEOUT, asking).await }).context("no answer in time")?
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Closing its input ends the proxy; waiting for it comes next.
        drop(self.proxy.stdin.take());
        drop(self.proxy.wait());
    }
}

/// A response whose connection is still being read.
struct Answer {
    status: u16,
    body: Incoming,
    _driver: JoinSet<()>,
}

impl Answer {
    async fn to(socket: &Path, method: &str, path: &str, body: Option<(&str, String)>) -> Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        let mut request = http::Request::builder().method(method).uri(path).header("host", "localhost");
        let mut bytes = Bytes::new();
        if let Some((kind, text)) = body {
            request = request.header("content-type", kind);
            bytes = text.into();
        }
        let response = sender.send_request(request.body(Full::new(bytes))?).await?;
        Ok(Self { status: response.status().as_u16(), body: response.into_body(), _driver: driver })
    }
}

/// A command behind a prefix.
pub fn command(prefix: &[String], words: &[&str]) -> Command {
    let mut all = prefix.iter().map(String::as_str).chain(words.iter().copied());
    let mut command = Command::new(all.next().unwrap_or("true"));
    command.args(all);
    command
}

/// Runs a command; its output, or an error with what it said.
pub fn run(mut command: Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    // A command that reads nothing is no error here.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output()?;
    writer.join().expect("writing does not panic");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    Ok(out.into_owned())
}

/// The words of a Status object.
fn message(body: &str) -> String {
    let status: Option<Value> = serde_json::from_str(body).ok();
    status.and_then(|status| status["message"].as_str().map(str::to_owned)).unwrap_or_else(|| body.to_owned())
}
