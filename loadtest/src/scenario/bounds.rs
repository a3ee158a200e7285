//! What may stand in a scenario: each number has two finite bounds, and what several of them make together is counted before
//! anything is started.

use anyhow::{Result, ensure};

use super::{Deed, Scenario};
use crate::identity::{PODS_MAX, SLOTS_MAX, Signal};
use crate::ledger::lane_items_max;

/// Of a run, and of a request's timeout.
const SECONDS_MIN: f64 = 0.001;

/// A day.
const SECONDS_MAX: f64 = 86_400.0;

/// Of a request: an hour.
const TIMEOUT_MAX: f64 = 3_600.0;

/// Requests a second of all pods together at any time: more than one thread can make.
const RATE_MAX: f64 = 1e6;

/// Of phases and noisy pods.
const FACTOR_MAX: f64 = 1e6;

/// A GiB.
const QUOTA_KIB_MAX: u64 = 1 << 20;

/// Phases, and events.
const CHANGES_MAX: usize = 1_000;

/// Requests of a pod under way at once.
const OUTSTANDING_MAX: usize = 1 << 14;

/// Kept connections of all pods together: each is a descriptor here and one in the agent.
const CONNECTIONS_MAX: usize = 1 << 14;

/// Of the bodies of all requests that may be under way at once.
const OUTSTANDING_BYTES_MAX: usize = 2 << 30;

/// More than an item of any profile takes, and than what a request has besides them.
pub(super) const ITEM_BYTES: usize = 1_024;

/// Refuses what cannot be run, by the key's name.
pub(super) fn check(scenario: &Scenario) -> Result<()> {
    check_load(scenario)?;
    check_shares(scenario)?;
    check_changes(scenario)?;
    check_room(scenario)?;
    check_account(scenario)
}

fn within(value: f64, max: f64) -> bool {
    (0.0..=max).contains(&value)
}

fn lasts(seconds: f64, max: f64) -> bool {
    (SECONDS_MIN..=max).contains(&seconds)
}

fn check_load(scenario: &Scenario) -> Result<()> {
    ensure!((1..=PODS_MAX).contains(&scenario.pods), "pods: 1 to {PODS_MAX}");
    ensure!(lasts(scenario.seconds, SECONDS_MAX), "seconds: {SECONDS_MIN} to a day");
    ensure!(within(scenario.warmup, SECONDS_MAX), "warmup: 0 to a day of seconds");
    ensure!(within(scenario.requests_per_second, RATE_MAX), "requests_per_second: 0 to {RATE_MAX}");
    let is_quota = |kib: u64| (1..=QUOTA_KIB_MAX).contains(&kib);
    ensure!(scenario.quota_kib_per_second.is_none_or(is_quota), "quota_kib_per_second: 1 to {QUOTA_KIB_MAX}");
    ensure!(lasts(scenario.timeout, TIMEOUT_MAX), "timeout: {SECONDS_MIN} to {TIMEOUT_MAX} seconds");
    if let Some(noisy) = scenario.noisy {
        let is_right = noisy.pods < scenario.pods && noisy.factor > 0.0 && noisy.factor <= FACTOR_MAX;
        ensure!(is_right, "noisy: fewer than all pods, a factor above 0 and at most {FACTOR_MAX}");
    }
    Ok(())
}

fn check_shares(scenario: &Scenario) -> Result<()> {
    let (batch, shares) = (scenario.batch(), scenario.shares());
    ensure!(batch.iter().any(|items| *items > 0), "items: of at least one signal");
    ensure!(batch.iter().all(|items| *items <= SLOTS_MAX), "items: at most {SLOTS_MAX} in a request");
    ensure!(shares.iter().all(|share| within(*share, FACTOR_MAX)), "shares: 0 to {FACTOR_MAX}");
    // Less than that of the largest would be lost in the sum.
    ensure!(shares.iter().any(|share| *share >= 1e-6), "shares: at least 0.000001 of one signal");
    let unsent = shares.iter().zip(batch).any(|(share, items)| *share > 0.0 && items == 0);
    ensure!(!unsent, "shares: a signal with a share needs items");
    Ok(())
}

fn check_changes(scenario: &Scenario) -> Result<()> {
    let Scenario { phases, events, .. } = scenario;
    ensure!(phases.len() <= CHANGES_MAX, "phases: at most {CHANGES_MAX}");
    ensure!(phases.iter().all(|phase| within(phase.at, SECONDS_MAX)), "phases: at 0 to a day of seconds");
    ensure!(phases.iter().all(|phase| within(phase.factor, FACTOR_MAX)), "phases: a factor is 0 to {FACTOR_MAX}");
    ensure!(phases.is_sorted_by(|a, b| a.at <= b.at), "phases: in order of time");
    ensure!(events.len() <= CHANGES_MAX, "events: at most {CHANGES_MAX}");
    ensure!(events.iter().all(|event| within(event.at, scenario.seconds)), "events: within the run");
    ensure!(events.is_sorted_by(|a, b| a.at <= b.at), "events: in order of time");
    let needs_disk = events.iter().any(|event| matches!(event.what, Deed::DiskFull | Deed::DiskFree));
    ensure!(!needs_disk || scenario.disk_mib.is_some(), "disk_mib: a disk that fills up needs a size");
    ensure!(scenario.disk_mib.is_none_or(|mib| (1..=4096).contains(&mib)), "disk_mib: 1 to 4096");
    Ok(())
}

/// Of connections and of what is under way.
fn check_room(scenario: &Scenario) -> Result<()> {
    let Scenario { pods, outstanding, connections, .. } = scenario;
    ensure!((1..=OUTSTANDING_MAX).contains(outstanding), "outstanding: 1 to {OUTSTANDING_MAX}");
    let is_few = *connections >= 1 && connections.saturating_mul(*pods) <= CONNECTIONS_MAX;
    ensure!(is_few, "connections: at least 1, at most {CONNECTIONS_MAX} of all pods together");
    let items = scenario.batch().into_iter().max().unwrap_or_default();
    let bytes = pods.saturating_mul(*outstanding).saturating_mul((items + 1) * ITEM_BYTES);
    ensure!(
        bytes <= OUTSTANDING_BYTES_MAX,
        "outstanding: {outstanding} requests of each pod under way at once, with up to {items} items of {ITEM_BYTES} bytes, may \
         take {} MiB of memory; at most {}",
        bytes >> 20,
        OUTSTANDING_BYTES_MAX >> 20
    );
    Ok(())
}

/// Of what is sent in all, and at once.
fn check_account(scenario: &Scenario) -> Result<()> {
    let (rates, warmup) = (scenario.rates(), scenario.warmup_rates());
    let factor = scenario.phases.iter().map(|phase| phase.factor).fold(1.0, f64::max);
    let rate = rates.pods.iter().sum::<f64>() * factor;
    ensure!(rate <= RATE_MAX, "requests_per_second: {rate} of all pods at once, at most {RATE_MAX}");
    let all: f64 = rates.pods.iter().sum();
    // The first pod is the noisiest.
    let of_pod = |all_pods: f64, all: f64, pod: f64| if all > 0.0 { all_pods * pod / all } else { 0.0 };
    let requests = of_pod(rates.expected(), all, rates.pods[0])
        + of_pod(warmup.expected(), warmup.pods.iter().sum(), warmup.pods[0]);
    let shares = scenario.shares();
    let room = lane_items_max(scenario.pods);
    for signal in Signal::ALL {
        let share = shares[signal.index()] / shares.iter().sum::<f64>();
        let (items, requests) = (scenario.batch()[signal.index()] as f64, requests * share);
        // Arrivals by chance may be more than expected; by this much they never are.
        let most = items * (requests + 10.0 * requests.sqrt() + 10.0);
        ensure!(
            requests * items <= 0.0 || most <= room as f64,
            "seconds: a pod would send about {:.0} items of {signal:?}, and the account of {} pods has room for {room} of each",
            requests * items,
            scenario.pods
        );
    }
    Ok(())
}
