//! The inside of a pod: loopback up, a shim, and clients that open a new TCP connection for each request.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pillion_loadtest::payload;
use rustix::process::Signal;
use serde_json::json;

use super::{PROGRESS, netlink};
use crate::gateway::kill;

const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4318);

/// Spans in each request.
const SPANS: u64 = 5;

#[derive(Debug, Default)]
struct Tally {
    acked: Vec<u64>,
    connect_failed: u64,
    unanswered: u64,
    refused: BTreeMap<u16, u64>,
    examples: Vec<String>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    tally: Mutex<Tally>,
}

/// Arguments: NODE SOCKET_DIR MODE SERVICE NUMBER CLIENTS.
pub fn main(arguments: Vec<OsString>) -> io::Result<()> {
    let text = |index: usize| arguments.get(index).and_then(|argument| argument.to_str()).unwrap_or_default();
    netlink::bring_up_loopback()?;
    let mut shim = start_shim(&arguments)?;
    let shared = Arc::new(Shared::default());
    let number: u64 = text(4).parse().map_err(io::Error::other)?;
    let clients: u64 = text(5).parse().map_err(io::Error::other)?;
    let threads: Vec<_> = (0..clients)
        .map(|client| {
            let (shared, service) = (shared.clone(), text(3).to_owned());
            std::thread::spawn(move || client_loop(&shared, &service, number << 48 | client << 40))
        })
        .collect();
    for line in io::stdin().lock().lines() {
        match line?.as_str() {
            "kill-shim" => {
                kill(shim.id(), Signal::KILL);
                shim.wait()?;
                shim = start_shim(&arguments)?;
                println!("shim {}", shim.id());
            }
            _ => break,
        }
    }
    shared.stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().expect("a client does not panic");
    }
    kill(shim.id(), Signal::TERM);
    shim.wait()?;
    report(&shared);
    Ok(())
}

/// Returns when the ports are bound: an application starts after its sidecar.
fn start_shim(arguments: &[OsString]) -> io::Result<Child> {
    let shim = Command::new(&arguments[0])
        .args(["shim", "run", "--dir"])
        .arg(&arguments[1])
        .arg("--mode")
        .arg(&arguments[2])
        .stdin(Stdio::null())
        .spawn()?;
    let waited = Command::new(&arguments[0]).args(["shim", "wait", "--dir"]).arg(&arguments[1]).status()?;
    if !waited.success() {
        return Err(io::Error::other(format!("`pillion shim wait` ended with {waited}")));
    }
    Ok(shim)
}

fn client_loop(shared: &Shared, service: &str, first: u64) {
    for request in 0.. {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let ids: Vec<u64> = (0..SPANS).map(|span| first | (request * SPANS + span)).collect();
        let body = payload::traces(service, &ids);
        let outcome = TcpStream::connect(HTTP).map(|stream| exchange(stream, &body));
        shared.lock().count(outcome, ids);
        let answered = shared.answered.fetch_add(1, Ordering::SeqCst) + 1;
        if answered.is_multiple_of(PROGRESS) {
            println!("acked {answered}");
        }
    }
}

/// The status of the answer.
fn exchange(mut stream: TcpStream, body: &[u8]) -> io::Result<u16> {
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: localhost:4318\r\ncontent-type: application/x-protobuf\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let status = answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    drop(stream.shutdown(Shutdown::Both));
    match status {
        Some(status) => Ok(status),
        None => read.and(Err(io::Error::from(io::ErrorKind::UnexpectedEof))),
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tally {
    fn count(&mut self, outcome: io::Result<io::Result<u16>>, ids: Vec<u64>) {
        match outcome {
            Ok(Ok(200)) => self.acked.extend(ids),
            Ok(Ok(status)) => *self.refused.entry(status).or_default() += 1,
            Ok(Err(error)) => {
                self.unanswered += 1;
                self.note(format!("unanswered: {error}"));
            }
            Err(error) => {
                self.connect_failed += 1;
                self.note(format!("connect: {error}"));
            }
        }
    }

    fn note(&mut self, example: String) {
        if self.examples.len() < 20 && !self.examples.contains(&example) {
            self.examples.push(example);
        }
    }
}

fn report(shared: &Shared) {
    let tally = shared.lock();
    let refused: BTreeMap<String, u64> = tally.refused.iter().map(|(status, n)| (status.to_string(), *n)).collect();
    let report = json!({
        "acked": tally.acked,
        "connect_failed": tally.connect_failed,
        "unanswered": tally.unanswered,
        "refused": refused,
        "examples": tally.examples,
    });
    println!("{report}");
}
