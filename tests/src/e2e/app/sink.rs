//! The backend: what arrived, by the service that says it sent it, and who the gateway says that it was.
//!
//! Owns counts, ids and attested attributes. It never refuses. What it has acknowledged is in its journal before, so a
//! backend that is killed and started again knows what it had.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::resource::v1::Resource;
use pillion_loadtest::payload::{id_of, value_of};
use pillion_loadtest::sink::{Keep, Received, Sink, Taker};
use prost::{DecodeError, Message};
use serde::{Deserialize, Serialize};

use super::journal::Journal;
use super::{Options, page, until_terminated};
use crate::e2e::ranges::Ranges;

/// The attributes that tell whose telemetry it is. The gateway attests those that begin with `k8s.`.
const IDENTITY: &str = "k8s.";

/// Different identities kept for a service; one is right, two are a failure already.
const IDENTITIES_MAX: usize = 16;

/// What arrived of a service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Service {
    /// Spans, metrics, log records; those that came twice count twice.
    pub items: [u64; 3],
    /// The spans' ids.
    pub spans: Ranges,
    /// Spans that came again.
    pub repeated_spans: u64,
    /// Each different set of `k8s.*` attributes that came with its resources.
    pub identities: BTreeSet<BTreeMap<String, String>>,
}

/// One resource of one request: a line of the journal.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Arrival {
    service: String,
    items: [u64; 3],
    spans: Vec<u64>,
    identity: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Book {
    services: BTreeMap<String, Service>,
    journal: Option<Journal>,
}

/// Serves until told to end.
pub(super) fn run(options: &mut Options) -> Result<()> {
    let (otlp, port): (u16, u16) = (options.take("otlp")?, options.take("page")?);
    let path: PathBuf = options.take("journal")?;
    options.finish()?;
    let mut book = Book { services: BTreeMap::new(), journal: None };
    let journal = Journal::open(&path, |line| {
        if let Ok(arrival) = serde_json::from_str(line) {
            book.note(arrival);
        }
    })?;
    book.journal = Some(journal);
    let book = Arc::new(Mutex::new(book));
    let for_sink = book.clone();
    let taker = Taker::new(move |received| for_sink.lock().unwrap_or_else(PoisonError::into_inner).take(received));
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, otlp));
    let _sink = Sink::start(address, Keep::Hand(taker))?;
    page::serve(port, move |path| book.lock().unwrap_or_else(PoisonError::into_inner).page(path))?;
    until_terminated()
}

impl Book {
    /// `/services`: their names and counts; `/service/NAME`: everything about one.
    fn page(&self, path: &str) -> Option<String> {
        let page = match path.strip_prefix("/service/") {
            Some(name) => serde_json::to_string(&self.services.get(name).cloned().unwrap_or_default()),
            None if path == "/services" => {
                let items: BTreeMap<_, _> = self.services.iter().map(|(name, service)| (name, service.items)).collect();
                serde_json::to_string(&items)
            }
            None => return None,
        };
        page.ok()
    }

    fn take(&mut self, received: &Received) -> Result<(), DecodeError> {
        for arrival in arrivals(&received.path, &received.payload)? {
            let line = serde_json::to_string(&arrival).expect("names and numbers are JSON");
            if let Some(journal) = &mut self.journal {
                journal.append(&line).expect("the journal's volume has room");
            }
            self.note(arrival);
        }
        Ok(())
    }

    fn note(&mut self, arrival: Arrival) {
        let service = self.services.entry(arrival.service).or_default();
        service.items.iter_mut().zip(arrival.items).for_each(|(sum, more)| *sum += more);
        service.repeated_spans += arrival.spans.into_iter().filter(|id| !service.spans.insert(*id)).count() as u64;
        if service.identities.len() < IDENTITIES_MAX {
            service.identities.insert(arrival.identity);
        }
    }
}

fn arrivals(path: &str, payload: &[u8]) -> Result<Vec<Arrival>, DecodeError> {
    let of = |resource: &Option<Resource>, items, spans| {
        let resource = resource.clone().unwrap_or_default();
        let keys = resource.attributes.iter().map(|attribute| attribute.key.clone());
        let keys = keys.filter(|key| key.starts_with(IDENTITY));
        let identity = keys.map(|key| (key.clone(), value_of(&resource, &key))).collect();
        Arrival { service: value_of(&resource, "service.name"), items, spans, identity }
    };
    Ok(if path.contains("trace") {
        let request = ExportTraceServiceRequest::decode(payload)?;
        let parts = request.resource_spans.iter().map(|part| {
            let spans = part.scope_spans.iter().flat_map(|scope| &scope.spans);
            let ids: Vec<u64> = spans.map(|span| id_of(&span.span_id)).collect();
            of(&part.resource, [ids.len() as u64, 0, 0], ids)
        });
        parts.collect()
    } else if path.contains("metrics") {
        let request = ExportMetricsServiceRequest::decode(payload)?;
        let parts = request.resource_metrics.iter().map(|part| {
            let metrics = part.scope_metrics.iter().map(|scope| scope.metrics.len() as u64).sum();
            of(&part.resource, [0, metrics, 0], Vec::new())
        });
        parts.collect()
    } else {
        let request = ExportLogsServiceRequest::decode(payload)?;
        let parts = request.resource_logs.iter().map(|part| {
            let records = part.scope_logs.iter().map(|scope| scope.log_records.len() as u64).sum();
            of(&part.resource, [0, 0, records], Vec::new())
        });
        parts.collect()
    })
}

#[cfg(test)]
mod tests {
    use pillion_loadtest::payload;

    use super::*;

    /// Scenario: spans arrive, some twice; the backend is killed and reads its journal, whose last line is torn.
    /// Guarantees: counts, ids, repeats and identities are those from before.
    #[test]
    fn a_backend_that_starts_again_knows_what_it_had() {
        let dir = crate::gateway::directory();
        let path = dir.path().join("journal");
        let mut book = Book { services: BTreeMap::new(), journal: Some(Journal::open(&path, |_| ()).unwrap()) };
        let received =
            |payload: Vec<u8>| Received { path: "/v1/traces".into(), headers: vec![], payload: payload.into() };
        book.take(&received(payload::traces("cart", &[1, 2, 3]))).unwrap();
        book.take(&received(payload::traces("cart", &[3, 4]))).unwrap();
        let before = book.page("/service/cart").unwrap();
        drop(book);
        Journal::open(&path, |_| ()).unwrap().append("{\"service\":\"ca").unwrap();

        let mut again = Book { services: BTreeMap::new(), journal: None };
        Journal::open(&path, |line| drop(serde_json::from_str(line).map(|arrival| again.note(arrival)))).unwrap();

        assert_eq!(again.page("/service/cart").unwrap(), before);
        let cart = &again.services["cart"];
        assert_eq!((cart.items, cart.spans.len(), cart.repeated_spans), ([5, 0, 0], 4, 1));
        assert_eq!(again.page("/services").unwrap(), "{\"cart\":[5,0,0]}");
    }
}
