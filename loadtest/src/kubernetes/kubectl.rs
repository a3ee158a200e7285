//! kubectl, and nothing else of a cluster: whoever can use it can compare.

use std::io::{BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::interrupt;

/// Events of a watch that wait to be read.
const EVENTS_MAX: usize = 1 << 12;

/// How often a wait looks whether the run is to end.
const LOOK: Duration = Duration::from_millis(100);

/// The program, with the words that come before its own arguments.
#[derive(Debug, Clone)]
pub struct Kubectl {
    words: Vec<String>,
}

/// Pods of a namespace, as they change. Ends when dropped.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    events: Receiver<(Instant, Value)>,
}

impl Kubectl {
    /// A command, split at spaces.
    pub fn new(command: &str) -> Result<Self> {
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        ensure!(!words.is_empty(), "--kubectl names no program");
        Ok(Self { words })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).args(arguments);
        command
    }

    /// Its output; an error tells what it said.
    pub fn run(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {}", self.words[0]))?;
        let mut stdin = child.stdin.take().context("piped")?;
        let output = std::thread::scope(|scope| {
            // One that reads nothing is no error here.
            scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
            child.wait_with_output()
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {} ended with {}: {}", arguments.join(" "), output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A path of the API.
    pub fn get(&self, path: &str) -> Result<Value> {
        let text = self.run(&["get", "--raw", path], "")?;
        serde_json::from_str(&text).with_context(|| format!("{path} is no JSON"))
    }

    /// Creates what a list has in it.
    pub fn create(&self, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.run(&["create", "-f", "-"], &list.to_string()).map(drop)
    }

    /// Begins to watch the pods of a namespace.
    pub fn watch(&self, namespace: &str) -> Result<Watch> {
        let mut command = self.command(&["get", "--raw", &format!("/api/v1/namespaces/{namespace}/pods?watch=1")]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().context("piped")?;
        let (say, events) = sync_channel(EVENTS_MAX);
        std::thread::Builder::new().name("watch".into()).spawn(move || {
            let values = serde_json::Deserializer::from_reader(BufReader::new(stdout)).into_iter::<Value>();
            // Ends with the process, or with who listens.
            values.map_while(Result::ok).all(|event| say.send((Instant::now(), event)).is_ok());
        })?;
        Ok(Watch { child, events })
    }
}

impl Watch {
    /// The next event, with the time at which it was read; `None`: not before `deadline`.
    pub fn next(&self, deadline: Instant) -> Result<Option<(Instant, Value)>> {
        loop {
            interrupt::check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left.min(LOOK)) {
                Ok(event) => return Ok(Some(event)),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the watch of the pods has ended"),
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Already gone is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Asks until there is an answer. An error means "not yet", and is told when `patience` is over.
pub fn until<T>(patience: Duration, between: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        interrupt::check()?;
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("waited {} s", patience.as_secs()));
            }
            Err(_) => std::thread::park_timeout(between),
        }
    }
}
