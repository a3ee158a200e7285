//! Agents with a fault each: the harness must call out every one of them, and nothing that is not there.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use pillion_loadtest::arm::{Arm, Direct, Running, Site};
use pillion_loadtest::cell::{self, Cell, Options};
use pillion_loadtest::client::{self, Connection};
use pillion_loadtest::limits::Limits;
use pillion_loadtest::network::{Network, Place};
use pillion_loadtest::payload;
use pillion_loadtest::profile::INSTANCE;
use pillion_loadtest::scenario::Scenario;
use pillion_loadtest::verdict;
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

/// Every so many requests the fault shows.
const EVERY: usize = 20;

/// So slow is the slow tail: far beyond what a busy machine does to a run without an agent.
const TAIL: Duration = Duration::from_secs(8);

/// What is wrong with an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    Loses,
    Repeats,
    Swaps,
    Corrupts,
    SlowTail,
}

/// A forwarding agent with that fault.
#[derive(Debug)]
struct Faulty(Fault);

#[derive(Debug)]
struct Proxy {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Arm for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }

    fn about(&self) -> String {
        format!("{:?}", self.0)
    }

    fn attests(&self) -> Option<&'static str> {
        None
    }

    fn start<'a>(&'a self, site: &'a Site<'a>) -> Result<Box<dyn Running + 'a>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let (address, backend) = (listener.local_addr()?, site.network.sink(Place::Agent, site.sink_port));
        let (stop, stopped) = watch::channel(false);
        let fault = self.0;
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("the process has descriptors left");
            LocalSet::new().block_on(&runtime, serve(listener, backend, fault, stopped)).expect("the backend is there");
        });
        Ok(Box::new(Proxy { address, stop, thread: Some(thread) }))
    }
}

impl Running for Proxy {
    fn grpc(&self, _pod: usize) -> SocketAddr {
        self.address
    }

    fn http(&self, _pod: usize) -> SocketAddr {
        self.address
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The requests so far, and where they go.
struct Node {
    fault: Fault,
    backend: Connection,
    requests: std::cell::Cell<usize>,
}

async fn serve(
    listener: TcpListener,
    backend: SocketAddr,
    fault: Fault,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let backend = Connection::open(backend).await?;
    let node = Rc::new(Node { fault, backend, requests: std::cell::Cell::new(0) });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.changed() => return Ok(()),
            accepted = listener.accept() => {
                let (stream, node) = (accepted?.0, node.clone());
                connections.spawn_local(async move { drop(intake(stream, &node).await) });
            }
        }
    }
}

async fn intake(stream: TcpStream, node: &Rc<Node>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = h2::server::handshake(stream).await?;
    let mut calls = JoinSet::new();
    while let Some(accepted) = connection.accept().await {
        let ((request, respond), node) = (accepted?, node.clone());
        calls.spawn_local(async move { drop(call(request, respond, &node).await) });
    }
    Ok(())
}

async fn call(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    node: &Node,
) -> Result<()> {
    let mut body = request.into_body();
    let mut message = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        message.extend_from_slice(&chunk);
    }
    let number = node.requests.get() + 1;
    node.requests.set(number);
    let fault = if number.is_multiple_of(EVERY) { node.fault } else { Fault::Nothing };
    if fault == Fault::SlowTail {
        tokio::time::sleep(TAIL).await;
    }
    let mut export = ExportTraceServiceRequest::decode(&message[5..])?;
    change(&mut export, fault);
    let framed = client::frame(&export.encode_to_vec());
    let times = match fault {
        Fault::Loses => 0,
        Fault::Repeats => 2,
        _ => 1,
    };
    for _ in 0..times {
        node.backend.export(client::TRACES, framed.clone()).await?;
    }
    let mut stream =
        respond.send_response(Response::builder().header("content-type", "application/grpc").body(())?, false)?;
    stream.send_data(Bytes::from_static(&[0; 5]), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Ok(stream.send_trailers(trailers)?)
}

fn change(export: &mut ExportTraceServiceRequest, fault: Fault) {
    for group in &mut export.resource_spans {
        match fault {
            Fault::Swaps => {
                let resource = group.resource.as_mut().expect("the profile has a resource");
                let name = payload::value_of(resource, INSTANCE);
                let other = if name == "cart-0000" { "cart-0001" } else { "cart-0000" };
                let attribute = resource.attributes.iter_mut().find(|attribute| attribute.key == INSTANCE);
                *attribute.expect("the profile names the pod") = payload::attribute(INSTANCE, other);
            }
            Fault::Corrupts => group.scope_spans[0].spans[0].name.push('?'),
            _ => {}
        }
    }
}

/// What is said of an agent with that fault, and the run itself.
fn told(fault: Fault) -> (Vec<String>, Cell) {
    // A tail is told from a thousand requests on, in no hurry: what a busy machine adds to the others is to be small beside it.
    let (seconds, rate) = if fault == Fault::SlowTail { (10, 55) } else { (1, 60) };
    let text = format!(
        "about = \"planted\"\npods = 2\nseconds = {seconds}.0\nwarmup = 0.0\nrequests_per_second = {rate}.0\nitems = {{traces = 5}}\n"
    );
    let scenario = Scenario::parse(&text).expect("a valid scenario");
    let dir = std::env::temp_dir();
    // Only an agent that loses is waited for in vain.
    let drain = Duration::from_secs(if fault == Fault::Loses { 2 } else { 60 });
    let options = Options { network: &Network::Here, limits: &Limits::find(), dir: &dir, seed: 4, round: 0, drain };
    let run = |arm: &dyn Arm| cell::run(arm, &scenario, options, &mut |_, _| {}).expect("the run ends well");
    let cells = [run(&Direct), run(&Faulty(fault))];
    assert_eq!(verdict::mistakes("direct", &cells, &scenario), [""; 0], "{:?}", cells[0]);
    let told = verdict::mistakes("faulty", &cells, &scenario);
    let [_, cell] = cells;
    assert_eq!(cell.requests.acknowledged, cell.requests.due, "it acknowledges everything: {cell:?}");
    (told, cell)
}

/// Requests in which the fault showed.
fn faults(cell: &Cell) -> u64 {
    let faults = cell.requests.due / EVERY as u64;
    assert!(faults > 0, "{cell:?}");
    faults
}

/// Scenario: an agent that decodes, encodes and forwards as it should.
/// Guarantees: nothing is said of it.
#[test]
fn an_honest_agent_is_not_accused() {
    let (told, cell) = told(Fault::Nothing);
    assert_eq!(told, [""; 0], "{cell:?}");
    assert_eq!((cell.account.delivered, cell.account.lost), (cell.requests.due * 5, 0));
}

/// Scenario: an agent that acknowledges one request of twenty and drops it.
/// Guarantees: the loss is called out, to the item.
#[test]
fn a_lossy_agent_is_called_out() {
    let (told, cell) = told(Fault::Loses);
    assert_eq!(told, [format!("{} items were acknowledged and lost", faults(&cell) * 5)], "{cell:?}");
}

/// Scenario: an agent that sends one request of twenty twice.
/// Guarantees: the repeats are called out, to the item.
#[test]
fn a_repeating_agent_is_called_out() {
    let (told, cell) = told(Fault::Repeats);
    assert_eq!(told, [format!("{} items arrived more often than once", faults(&cell) * 5)], "{cell:?}");
}

/// Scenario: an agent that gives one request of twenty the other pod's name.
/// Guarantees: the wrong attribution is called out, to the item.
#[test]
fn an_agent_that_swaps_attribution_is_called_out() {
    let (told, cell) = told(Fault::Swaps);
    let expected = format!("{} items arrived under another pod's name, or none", faults(&cell) * 5);
    assert_eq!(told, [expected], "{cell:?}");
}

/// Scenario: an agent that changes the name of one span in one request of twenty.
/// Guarantees: the corruption is called out, to the item.
#[test]
fn a_corrupting_agent_is_called_out() {
    let (told, cell) = told(Fault::Corrupts);
    assert_eq!(told, [format!("{} items arrived changed", faults(&cell))], "{cell:?}");
    assert!(cell.account.examples[0].contains("content"), "{cell:?}");
}

/// Scenario: an agent that lets one request of twenty wait for seconds, while the same load without it does not.
/// Guarantees: the slow tail is called out, and nothing else.
#[test]
fn an_agent_with_a_slow_tail_is_called_out() {
    let (told, cell) = told(Fault::SlowTail);
    assert!(told.len() == 1 && told[0].starts_with("a slow tail"), "{told:?} {cell:?}");
}
