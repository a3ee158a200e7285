//! Tells the pods what to do, all at once, and adds up what they say.
//!
//! It listens beside the sink, so pods reach it where they reach that. A connection that is no pod of this run is closed.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::share::{Line, Order, Part, Report};
use crate::generator::Outcome;
use crate::identity::pod_name;
use crate::interrupt;
use crate::ledger::Ledger;
use crate::scenario::Scenario;

/// A connection that has not said who it is by then is no pod's.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// Preparing, and what a pod is late beyond its scenario.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);

/// How often is looked for new connections.
const BETWEEN: Duration = Duration::from_millis(2);

/// Where pods call.
#[derive(Debug)]
pub struct Conductor {
    listener: TcpListener,
}

/// All pods of a run, each at its line.
#[derive(Debug)]
pub struct Pods {
    lines: Vec<Line>,
    scenario: Scenario,
}

impl Conductor {
    /// Listens there.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("binding the conductor to {address}"))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// Where it listens.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Waits until every pod of this run has said that it can send.
    pub fn gather(&self, run: u64, scenario: &Scenario, patience: Duration) -> Result<Pods> {
        let mut lines: Vec<Option<Line>> = (0..scenario.pods).map(|_| None).collect();
        let deadline = Instant::now() + patience;
        while let Some(missing) = lines.iter().position(Option::is_none) {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    let mut line = Line::new(stream)?;
                    if let Ok(Some(Report::Hello { number, run: of })) = line.hear(Some(HELLO_PATIENCE))
                        && of == run
                        && let Some(place) = lines.get_mut(usize::from(number))
                    {
                        *place = Some(line);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ensure!(Instant::now() < deadline, "{} did not call within {patience:?}", pod_name(missing));
                    interrupt::check()?;
                    std::thread::park_timeout(BETWEEN);
                }
                Err(error) => return Err(error).context("accepting pods"),
            }
        }
        Ok(Pods { lines: lines.into_iter().flatten().collect(), scenario: scenario.clone() })
    }
}

impl Pods {
    /// Has each of them make what it will send.
    pub fn prepare(&mut self, seed: u64, ids_seed: u64) -> Result<()> {
        let scenario = Box::new(self.scenario.clone());
        self.order(&Order::Prepare { scenario, seed, ids_seed }, ANSWER_PATIENCE, |_, report| match report {
            Report::Prepared => Ok(()),
            other => bail!("an answer to another order: {other:?}"),
        })
    }

    /// Has all of them send; returns when the last one has its last answer. What they saw acknowledged is put into the ledger.
    pub fn send(&mut self, part: Part, ledger: &Ledger) -> Result<Outcome> {
        let seconds = match part {
            Part::WarmUp => self.scenario.warmup,
            Part::Measured => self.scenario.seconds,
        };
        let patience = Duration::from_secs_f64(seconds + self.scenario.timeout) + ANSWER_PATIENCE;
        let mut sum = Outcome::default();
        self.order(&Order::Send(part), patience, |number, report| match report {
            Report::Sent(share) => {
                let replaced = ledger.replace(number, &share.lanes);
                replaced.ok().context("it claims more than it can have sent")?;
                sum.add(share.outcome);
                Ok(())
            }
            other => bail!("an answer to another order: {other:?}"),
        })?;
        Ok(sum)
    }

    /// To all of them before anybody's answer is waited for.
    fn order(
        &mut self,
        order: &Order,
        patience: Duration,
        mut take: impl FnMut(u16, Report) -> Result<()>,
    ) -> Result<()> {
        for (number, line) in self.lines.iter_mut().enumerate() {
            line.say(order).with_context(|| pod_name(number))?;
        }
        for (number, line) in self.lines.iter_mut().enumerate() {
            let answer = line.hear(Some(patience)).and_then(|answer| answer.context("it has ended"));
            let place = u16::try_from(number).context("at most PODS_MAX pods")?;
            let taken = answer.and_then(|answer| match answer {
                Report::Failed(why) => bail!("{why}"),
                report => take(place, report),
            });
            taken.with_context(|| pod_name(number))?;
        }
        Ok(())
    }
}
