//! Destinations that change their minds: OK, UNAVAILABLE, slow; content that is poison is refused always.
//!
//! Owns a sink and the thread that changes its mind; both end when dropped.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use pillion_loadtest::payload::item_ids;
use pillion_loadtest::sink::{Fault, Keep, Pace, Received, Sink, Taker};

use super::books::Arrivals;
use super::item::Record;

/// What arrivals are noted with.
#[derive(Debug, Default)]
pub(super) struct Moment {
    /// Kills so far.
    pub(super) kills: AtomicU32,
    /// Everything that arrives from now on had been queued at the end.
    pub(super) is_late: AtomicBool,
}

/// One destination.
#[derive(Debug)]
pub(super) struct Backend {
    sink: Arc<Sink>,
    arrivals: Arc<Mutex<Arrivals>>,
    moods: Option<Moods>,
}

#[derive(Debug)]
struct Moods {
    stopped: Arc<(Mutex<bool>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Backend {
    /// On a port of its own.
    pub(super) fn start(mut rng: Rng, moment: Arc<Moment>) -> Result<Self> {
        let arrivals: Arc<Mutex<Arrivals>> = Arc::default();
        let book = arrivals.clone();
        let taker = Taker::new(move |received| take(received, &mut lock(&book), &moment));
        let sink = Arc::new(Sink::start((Ipv4Addr::LOCALHOST, 0).into(), Keep::Hand(taker))?);
        let stopped: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let (for_thread, of_thread) = (sink.clone(), stopped.clone());
        let thread = std::thread::spawn(move || {
            loop {
                let pause = change(&for_thread, &mut rng);
                let stopped = of_thread.0.lock().unwrap_or_else(PoisonError::into_inner);
                let waited = of_thread.1.wait_timeout_while(stopped, pause, |stopped| !*stopped);
                if *waited.unwrap_or_else(PoisonError::into_inner).0 {
                    return;
                }
            }
        });
        Ok(Self { sink, arrivals, moods: Some(Moods { stopped, thread }) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.sink.address()
    }

    /// No more moods: from now on as told, at once.
    pub(super) fn settle(&mut self, fault: Fault) {
        self.calm();
        self.sink.answer(Pace::Now);
        self.sink.fail_with(fault);
    }

    fn calm(&mut self) {
        if let Some(moods) = self.moods.take() {
            *moods.stopped.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            moods.stopped.1.notify_all();
            moods.thread.join().expect("it only waits");
        }
    }

    /// Whether all of it has arrived.
    pub(super) fn has(&self, record: Record) -> bool {
        lock(&self.arrivals).has(record)
    }

    /// Requests answered with OK, and with anything else.
    pub(super) fn answers(&self) -> [u64; 2] {
        [self.sink.requests(), self.sink.refused()]
    }

    /// What arrived.
    pub(super) fn into_arrivals(mut self) -> Arrivals {
        self.calm();
        std::mem::take(&mut lock(&self.arrivals))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.calm();
    }
}

fn change(sink: &Sink, rng: &mut Rng) -> Duration {
    let (fault, pace, pause) = match rng.u8(..10) {
        0..=4 => (Fault::None, Pace::Now, 50..1_000),
        5..=7 => (Fault::Unavailable, Pace::Now, 50..700),
        _ => (Fault::None, Pace::After(Duration::from_millis(rng.u64(5..250))), 100..700),
    };
    sink.answer(pace);
    sink.fail_with(fault);
    Duration::from_millis(rng.u64(pause))
}

/// As invalid content.
#[derive(Debug)]
struct Refused;

fn take(received: &Received, arrivals: &mut Arrivals, moment: &Moment) -> Result<(), Refused> {
    let Ok(ids) = item_ids(&received.path, &received.payload, "k8s.pod.name") else { return Err(Refused) };
    if ids.iter().any(|(id, _)| Record::of(*id).0.is_poison()) {
        return Err(Refused);
    }
    arrivals.take(&ids, (moment.kills.load(Ordering::SeqCst), moment.is_late.load(Ordering::SeqCst)));
    Ok(())
}

fn lock(arrivals: &Mutex<Arrivals>) -> std::sync::MutexGuard<'_, Arrivals> {
    arrivals.lock().unwrap_or_else(PoisonError::into_inner)
}
