//! A pod under load while something else is broken, and the account of it afterwards.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::app::LoadReport;
use super::pods::{APPLICATIONS, PAGE, Pod};
use super::suite::Suite;
use super::wait::until;

const PATIENCE: Duration = Duration::from_secs(120);

/// Clients, and requests a second of all of them.
const SHAPE: [&str; 4] = ["--clients", "8", "--each-second", "120"];

/// Answers after which telemetry flows again.
const FLOWING: u64 = 24;

/// The pod.
#[derive(Debug)]
pub struct Load<'a> {
    suite: &'a Suite,
    pod: String,
}

impl Suite {
    /// Starts a pod under load and waits until telemetry flows.
    pub fn start_load(&self, name: &str) -> Result<Load<'_>> {
        let page = PAGE.to_string();
        let mut mode = vec!["load", "--page", &page, "--journal", "/state/acknowledged"];
        mode.extend(SHAPE);
        self.cluster.start_ready(&Pod::new(name, &mode).injected())?;
        let load = Load { suite: self, pod: name.to_owned() };
        load.flows()?;
        Ok(load)
    }
}

impl Load<'_> {
    /// What became of the requests so far, without ids.
    pub fn brief(&self) -> Result<LoadReport> {
        self.page("/brief")
    }

    /// The pod's clock, from which a pause is looked for.
    pub fn now_ms(&self) -> Result<u64> {
        Ok(self.brief()?.now_ms)
    }

    /// Waits until more requests are answered than were when asked.
    pub fn flows(&self) -> Result<()> {
        let first = until("the load pod answers", PATIENCE, || self.brief())?;
        until("telemetry flows", PATIENCE, || {
            let now = self.brief()?;
            // A container that was started again counts from nothing.
            let before = if now.answered < first.answered { 0 } else { first.answered };
            ensure!(now.answered >= before + FLOWING, "answered {} then, {} now; {now:?}", before, now.answered);
            Ok(())
        })
    }

    /// The longest time without an answer that ended after `since`, in milliseconds; what is too short to be noted is 0.
    pub fn longest_pause_ms(&self, since: u64) -> Result<u64> {
        let report = self.brief()?;
        let ended_since = report.pauses.iter().filter(|(from, length)| from + length >= since);
        Ok(ended_since.map(|(_, length)| *length).max().unwrap_or(0))
    }

    /// Waits until everything acknowledged so far has arrived, and says what happened. Fails when connect() ever did.
    pub fn settle(&self) -> Result<LoadReport> {
        let report: LoadReport = self.page("/report")?;
        self.suite.arrived(&self.pod, &report)?;
        ensure!(
            report.connect_errors == 0,
            "connect() failed {} of {} times: {:?}",
            report.connect_errors,
            report.connects,
            report.connect_examples
        );
        ensure!(report.refused.is_empty(), "requests were refused: {:?}", report.refused);
        Ok(report)
    }

    fn page(&self, path: &str) -> Result<LoadReport> {
        Ok(serde_json::from_str(&self.suite.cluster.page(APPLICATIONS, &self.pod, PAGE, path)?)?)
    }
}

impl Suite {
    /// Waits until every id that a pod has seen acknowledged is at the backend, and prints the account.
    pub fn arrived(&self, pod: &str, report: &LoadReport) -> Result<()> {
        let service = until("everything acknowledged has arrived", PATIENCE, || {
            let service = self.service(pod)?;
            let missing = report.acknowledged.without(&service.spans);
            ensure!(missing.is_empty(), "{} of {} are missing: {missing:?}", missing.len(), report.acknowledged.len());
            Ok(service)
        })?;
        ensure!(service.identities.len() == 1, "it arrived under several identities: {:?}", service.identities);
        self.seen(
            "nothing acknowledged is lost",
            &format!(
                "{} acknowledged, 0 missing; {} unanswered, {} repeated; {} connections, connect() failed {} times, at most {} ms",
                report.acknowledged.len(),
                report.unanswered,
                service.repeated_spans,
                report.connects,
                report.connect_errors,
                report.slowest_connect_ms
            ),
        );
        Ok(())
    }
}
