use std::time::SystemTime;

use super::*;
use crate::judge::{Judge, Settings};
use crate::profile::{Profile, SHOP};
use crate::schedule::{Arrivals, Rates};
use crate::sink::{Fault, Keep, Pace, Sink, Taker};

struct World {
    plan: Arc<Plan>,
    ledger: Arc<Ledger>,
    judge: Arc<Judge>,
    sink: Sink,
}

impl World {
    fn new() -> Self {
        let plan = Arc::new(Plan::new(&Profile::parse(SHOP).unwrap(), 3, 2, [10, 5, 5]).unwrap());
        let judge = Arc::new(Judge::new(Settings { plan: plan.clone(), attested: None, resource: Vec::new() }));
        let for_sink = judge.clone();
        let taker = Taker::new(move |received| {
            let signal = Signal::of_path(&received.path).expect("the generator knows its paths");
            for_sink.arrive(signal, &received.payload, unix_now())
        });
        let sink = Sink::start("127.0.0.1:0".parse().unwrap(), Keep::Hand(taker)).unwrap();
        Self { ledger: Arc::new(Ledger::new(2)), plan, judge, sink }
    }

    fn load(&self, transport: Transport, bounds: Bounds, per_second: f64, seconds: f64) -> Load {
        let rates = Rates {
            pods: vec![per_second; 2],
            shares: [0.6, 0.2, 0.2],
            phases: Vec::new(),
            duration: seconds,
            arrivals: Arrivals::Poisson,
        };
        Load { plan: self.plan.clone(), schedule: Schedule::new(rates, 1), transport, bounds, first_group: 1 }
    }

    fn run(&self, load: Load) -> Outcome {
        run(load, Rc::new(Here(self.sink.address())), self.ledger.clone(), Arc::default()).unwrap()
    }
}

fn unix_now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// Scenario: two pods send all signals over each protocol, with each compression, over kept and over new connections.
/// Guarantees: everything is acknowledged, arrives once, unchanged and under its pod's name, and the books say so.
#[test]
fn every_transport_delivers_every_item() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        for (compression, keep) in [(Compression::None, true), (Compression::Gzip, false), (Compression::Zstd, true)] {
            let world = World::new();
            let transport = Transport { protocol, compression, keep, connections: 2 };
            let outcome = world.run(world.load(transport, Bounds::default(), 200.0, 0.2));
            let account = world.judge.account(&world.ledger);
            assert_eq!(outcome.unacknowledged(), 0, "{transport:?}: {outcome:?}");
            assert_eq!(account.mistakes(), [""; 0], "{transport:?}: {account:?}");
            assert!(outcome.due > 40 && account.requests == outcome.due, "{transport:?}: {account:?}");
            assert!(account.sent == account.acknowledged && account.sent == account.delivered, "{account:?}");
            assert_eq!(outcome.all_latencies().count(), outcome.due);
            if !keep {
                assert_eq!(outcome.connections, outcome.due, "a connection for each request");
            } else if protocol == Protocol::Grpc {
                assert!(outcome.connections <= 4, "two a pod: {outcome:?}");
            }
        }
    }
}

/// Scenario: the generator is about to sleep, with every kind of thing ahead of it.
/// Guarantees: answers wake it only where something waits for them, and else wait for 5 ms at most.
#[test]
fn answers_wake_nobody_who_does_not_wait_for_one() {
    const MS: u64 = 1_000_000;
    let (nap, wait) = (|ms| Rest::Nap(Duration::from_millis(ms)), |ms| Rest::Wait(Duration::from_millis(ms)));
    assert_eq!(Rest::of(Some(12 * MS), u64::MAX, 10 * MS, false), nap(2));
    assert_eq!(Rest::of(Some(12 * MS), 11 * MS, 10 * MS, false), nap(1), "one times out before");
    assert_eq!(Rest::of(Some(9 * MS), u64::MAX, 10 * MS, false), nap(0), "late already");
    assert_eq!(Rest::of(Some(12 * MS), u64::MAX, 10 * MS, true), wait(2));
    assert_eq!(Rest::of(Some(16 * MS), u64::MAX, 10 * MS, false), wait(6), "too long for a nap");
    assert_eq!(Rest::of(None, 11 * MS, 10 * MS, false), wait(1), "only answers are left");
    assert_eq!(Rest::of(None, u64::MAX, 10 * MS, false), Rest::Wait(LOOK));
}

/// Scenario: the backend answers nothing until all requests have come due; one of a pod may be under way at a time.
/// Guarantees: a request's latency counts from when it was due, not from when it could be sent, and so does its delivery: no
/// coordinated omission.
#[test]
fn latency_counts_from_when_a_request_was_due() {
    let world = World::new();
    world.sink.answer(Pace::Held);
    let bounds = Bounds { outstanding: 1, ..Bounds::default() };
    let mut load = world.load(Transport::default(), bounds, 100.0, 0.4);
    let rates = Rates {
        pods: vec![100.0, 0.0],
        shares: [1.0, 0.0, 0.0],
        phases: Vec::new(),
        duration: 0.4,
        arrivals: Arrivals::Constant,
    };
    load.schedule = Schedule::new(rates, 1);
    let live = Arc::new(Live::default());
    let outcome = std::thread::scope(|scope| {
        let running =
            scope.spawn(|| run(load, Rc::new(Here(world.sink.address())), world.ledger.clone(), live.clone()));
        while live.due.load(Ordering::Relaxed) < 39 {
            std::thread::yield_now();
        }
        world.sink.answer(Pace::Now);
        running.join().expect("the generator does not panic").unwrap()
    });

    // Due evenly over 0.4 s and all answered after 0.38 s: half of them waited for 0.18 s or longer.
    let [first, _] = &outcome.latencies;
    assert_eq!(outcome.unacknowledged(), 0, "{outcome:?}");
    assert!(first.percentile(0.5).unwrap() >= Duration::from_millis(170), "{:?}", first.percentile(0.5));
    assert!(first.max().unwrap() >= Duration::from_millis(360), "{:?}", first.max());
    let delivery = world.judge.delivery(&world.ledger);
    assert!(delivery.percentile(0.5).unwrap() >= Duration::from_millis(170), "{:?}", delivery.percentile(0.5));
}

/// Scenario: the backend never answers; two requests of a pod may be under way, three may wait.
/// Guarantees: memory is bounded, and every request that came due is accounted for: timed out or never sent.
#[test]
fn what_could_not_be_sent_is_told() {
    let world = World::new();
    world.sink.answer(Pace::Held);
    let bounds = Bounds { outstanding: 2, waiting: 3, timeout: Duration::from_millis(150) };
    let outcome = world.run(world.load(Transport::default(), bounds, 500.0, 0.1));
    let account = world.judge.account(&world.ledger);

    assert_eq!(outcome.acknowledged, 0, "{outcome:?}");
    assert_eq!(outcome.timed_out, 10, "two pods, two under way and three waiting each: {outcome:?}");
    assert_eq!(outcome.unsent, outcome.due - outcome.timed_out, "{outcome:?}");
    assert_eq!(outcome.all_latencies().count(), outcome.due);
    assert_eq!(outcome.all_latencies().percentile(0.01), None, "no percentile of answers that never came");
    assert_eq!(account.acknowledged, 0);
}

/// Scenario: the backend refuses, then closes connections without an answer, then nobody listens.
/// Guarantees: each is told as what it is, and nothing is owed for it.
#[test]
fn refusals_and_broken_connections_are_told_apart() {
    let mut world = World::new();
    world.sink.fail_with(Fault::Unavailable);
    let load = || world.load(Transport::default(), Bounds::default(), 100.0, 0.1);
    let refused = world.run(load());
    assert_eq!(refused.refused, BTreeMap::from([(14, refused.due)]), "{refused:?}");
    world.sink.fail_with(Fault::Drop);
    let dropped = world.run(load());
    assert_eq!(dropped.failed, dropped.due, "{dropped:?}");
    let (load, address) = (load(), world.sink.address());
    world.sink = Sink::start("127.0.0.1:0".parse().unwrap(), Keep::Nothing).unwrap();
    let gone = run(load, Rc::new(Here(address)), world.ledger.clone(), Arc::default()).unwrap();
    assert_eq!(gone.failed, gone.due, "{gone:?}");
    assert!(gone.examples[0].contains("refused"), "{gone:?}");
    assert_eq!(world.judge.account(&world.ledger).acknowledged, 0);
}

/// Scenario: far more requests come due than can be made, nothing is answered, and the run is told to stop.
/// Guarantees: it does, with the requests that are under way, long before it has caught up with what is due.
#[test]
fn a_rate_that_cannot_be_kept_can_be_stopped() {
    let world = World::new();
    world.sink.answer(Pace::Held);
    let (live, per_second, seconds) = (Arc::new(Live::default()), 1e9, 0.1);
    let for_stop = live.clone();
    let stop = std::thread::spawn(move || {
        while for_stop.due.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        for_stop.stop.store(true, Ordering::Relaxed);
    });
    let load = world.load(Transport::default(), Bounds::default(), per_second, seconds);
    let ended = run(load, Rc::new(Here(world.sink.address())), world.ledger.clone(), live.clone());
    stop.join().unwrap();
    assert!(ended.is_err(), "{ended:?}");
    assert!(live.due.load(Ordering::Relaxed) < 50_000_000);
}
