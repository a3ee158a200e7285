//! One pod's share of the load: the generator in a pod of its own, told what to do and asked what became of it.
//!
//! ```text
//! pod         connects to its agent until that accepts, then to the conductor: its line
//! pod         Hello        it can send from now on
//! conductor   Prepare      what to send
//! pod         Prepared
//! conductor   Send         now; the warm-up, or what is measured
//! pod         Sent         outcome, and all that it has numbered and seen acknowledged since its start
//! conductor   closes       the pod ends
//!
//! line   one JSON value and a newline, at most LINE_BYTES_MAX
//! ```
//!
//! A pod's schedule has its own seed, so pods are independent of each other; contents and ids are those of the whole run.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cell;
use crate::generator::{self, Here, Load, Outcome};
use crate::identity::mix;
use crate::ledger::{LaneShare, Ledger};
use crate::profile::Profile;
use crate::scenario::Scenario;
use crate::schedule::{Rates, Schedule};
use crate::template::Plan;

/// Of one line: an account with a run for each of its acknowledged requests fits, whatever its pod was refused in between.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// An agent that does not listen by then is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two tries of a connection.
const BETWEEN: Duration = Duration::from_millis(5);

/// Who a pod is, and whom it talks to.
#[derive(Debug, Clone, Copy)]
pub struct Pod {
    /// Its number.
    pub number: u16,
    /// Tells this run's pods from those that an earlier one left.
    pub run: u64,
    /// Gives orders.
    pub conductor: SocketAddr,
    /// Where telemetry goes: its agent, or the sink.
    pub target: SocketAddr,
}

/// What a pod is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Order {
    /// What will be sent.
    Prepare {
        /// The whole scenario, of which the pod does its own share.
        scenario: Box<Scenario>,
        /// Of the run.
        seed: u64,
        /// Of its ids.
        ids_seed: u64,
    },
    /// Begin.
    Send(Part),
}

/// Of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// The load before.
    WarmUp,
    /// What is measured.
    Measured,
}

/// What a pod says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Report {
    /// Its agent accepts connections.
    Hello {
        /// Which pod.
        number: u16,
        /// Of which run.
        run: u64,
    },
    /// It has what it will send.
    Prepared,
    /// It has sent it.
    Sent(Box<Share>),
    /// It cannot.
    Failed(String),
}

/// What became of a pod's share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Share {
    /// Of this part.
    pub outcome: Outcome,
    /// Of all parts so far.
    pub lanes: [LaneShare; 3],
}

/// One end of a line.
#[derive(Debug)]
pub struct Line {
    reader: BufReader<TcpStream>,
}

impl Line {
    /// Of a connection that is there.
    pub fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends one value.
    pub fn say(&mut self, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(value)?;
        text.push(b'\n');
        Ok(self.reader.get_mut().write_all(&text)?)
    }

    /// The next value; `None`: the other end has closed. Waits no longer than `patience`, for ever without one.
    pub fn hear<T: DeserializeOwned>(&mut self, patience: Option<Duration>) -> Result<Option<T>> {
        self.reader.get_ref().set_read_timeout(patience)?;
        let mut text = Vec::new();
        (&mut self.reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut text).context("no answer")?;
        match text.last() {
            None => Ok(None),
            Some(b'\n') => Ok(Some(serde_json::from_slice(&text).context("not a line of a pod or its conductor")?)),
            Some(_) => bail!("a line was cut off, or longer than {LINE_BYTES_MAX} bytes"),
        }
    }
}

/// What a pod has prepared.
struct Prepared {
    scenario: Scenario,
    seed: u64,
    plan: Arc<Plan>,
    ledger: Arc<Ledger>,
}

/// Does one pod's share; returns when the conductor has closed the line.
pub fn run(pod: Pod) -> Result<()> {
    // Only looked at: the generator makes connections of its own.
    drop(connect(pod.target).context("the pod's agent")?);
    let mut line = Line::new(connect(pod.conductor).context("the conductor")?)?;
    line.say(&Report::Hello { number: pod.number, run: pod.run })?;
    let mut prepared = None;
    while let Some(order) = line.hear(None)? {
        let report = match obey(pod, order, &mut prepared) {
            Ok(report) => report,
            Err(error) => Report::Failed(format!("{error:#}")),
        };
        line.say(&report)?;
    }
    Ok(())
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("nobody accepts at {address}"));
            }
            Err(_not_yet) => std::thread::park_timeout(BETWEEN),
        }
    }
}

fn obey(pod: Pod, order: Order, prepared: &mut Option<Prepared>) -> Result<Report> {
    match order {
        Order::Prepare { scenario, seed, ids_seed } => {
            scenario.check()?;
            ensure!(usize::from(pod.number) < scenario.pods, "there is no pod {}", pod.number);
            let profile = Profile::parse(scenario.profile.text())?;
            let plan = Arc::new(cell::plan(&profile, &scenario, seed, ids_seed)?);
            let ledger = Arc::new(Ledger::new(scenario.pods));
            *prepared = Some(Prepared { scenario: *scenario, seed, plan, ledger });
            Ok(Report::Prepared)
        }
        Order::Send(part) => {
            let prepared = prepared.as_ref().context("nothing is prepared")?;
            let Prepared { scenario, seed, plan, ledger } = prepared;
            let rates = match part {
                Part::WarmUp => scenario.warmup_rates(),
                Part::Measured => scenario.rates(),
            };
            let load = Load {
                plan: plan.clone(),
                schedule: Schedule::new(own(rates, pod.number), mix(seed ^ (u64::from(pod.number) + 1))),
                transport: scenario.transport(),
                bounds: scenario.bounds(),
                first_group: scenario.first_group(),
            };
            let outcome = generator::run(load, Rc::new(Here(pod.target)), ledger.clone(), Arc::default())?;
            Ok(Report::Sent(Box::new(Share { outcome, lanes: ledger.share(pod.number) })))
        }
    }
}

/// One pod's load: the others send none.
fn own(mut rates: Rates, pod: u16) -> Rates {
    for (number, rate) in rates.pods.iter_mut().enumerate() {
        if number != usize::from(pod) {
            *rate = 0.0;
        }
    }
    rates
}
