//! What arrived, item by item, against what was acknowledged: loss, duplicates, corruption, wrong attribution.
//!
//! Sits in the sink. It keeps one bit an item and a few numbers a pod, whatever arrives; it never judges latency, and it
//! counts reordering without holding it against anybody.
//!
//! ```text
//! lost          acknowledged by the agent, and not here
//! duplicated    here once more
//! corrupted     an item of this run whose content, trace id, parent or duration is not what was sent
//! misattributed its resource names another pod, or none, or what the agent attests is another pod's
//! foreign       no item of this run: what was sent instead shows up as lost
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bitmap::Bitmap;
use crate::histogram::Latencies;
use crate::identity::{Item, Signal, hexadecimal, pod_name, trace_id};
use crate::item::{Parts, Place, each_item, hash, messages};
use crate::ledger::{Ledger, lane, lane_items_max};
use crate::profile::INSTANCE;
use crate::template::{Plan, Slot};
use crate::wire::Malformed;

mod desk;
#[cfg(test)]
mod tests;

pub use self::desk::{Desk, THREAD, Tray};

/// Different resources that are remembered; there is one a pod, unless an agent makes more.
const OWNERS_MAX: usize = 1 << 14;

/// An item's start cannot be further from its arrival: in the past as long as any run may take, in the future what clocks that
/// are set meanwhile may differ by.
const LATE_MAX: u64 = 24 * 3_600 * SECOND;
const EARLY_MAX: u64 = SECOND;
const SECOND: u64 = 1_000_000_000;

/// Mistakes that are kept word for word.
const EXAMPLES_MAX: usize = 10;

/// What the judge is told before a run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is sent.
    pub plan: Arc<Plan>,
    /// The resource attribute in which the agent says whose an item is, when it promises to: the pod's name.
    pub attested: Option<String>,
    /// Attributes of the resource that must arrive as they were sent.
    pub resource: Vec<(String, String)>,
}

/// Reads what arrives.
#[derive(Debug)]
pub struct Judge {
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    lanes: Vec<Lane>,
    owners: HashMap<u64, Owner>,
    tally: Tally,
    delivery: Latencies,
    /// Of the first item that arrived, in nanoseconds.
    first_delivery: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct Lane {
    arrived: Bitmap,
    /// One above the highest sequence that arrived.
    next: u64,
}

#[derive(Debug, Clone, Default)]
struct Tally {
    requests: u64,
    duplicated: u64,
    corrupted: u64,
    misattributed: u64,
    foreign: u64,
    reordered: u64,
    malformed: u64,
    examples: Vec<String>,
}

/// Whose items a resource says they are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    /// This pod's.
    Pod(u16),
    /// It does not say, or says two things.
    Unclear(String),
    /// It does, but what the pod said of itself is not what arrived.
    Changed(u16, String),
}

/// What became of everything, after a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Items sent.
    pub sent: u64,
    /// Items acknowledged.
    pub acknowledged: u64,
    /// Different items that arrived.
    pub delivered: u64,
    /// Acknowledged, and did not arrive.
    pub lost: u64,
    /// Not acknowledged, and arrived all the same: the answer was lost, or too late. No mistake.
    pub delivered_unacknowledged: u64,
    /// Arrivals of an item that had arrived.
    pub duplicated: u64,
    /// Arrivals whose content is not what was sent.
    pub corrupted: u64,
    /// Arrivals under another pod's name, or none.
    pub misattributed: u64,
    /// Arrivals that are no item of this run.
    pub foreign: u64,
    /// Requests that are no OTLP.
    pub malformed: u64,
    /// Arrivals after a later item of the same pod. Told, not judged.
    pub reordered: u64,
    /// Requests that arrived.
    pub requests: u64,
    /// The first mistakes, in words.
    pub examples: Vec<String>,
}

impl Judge {
    /// Has seen nothing.
    pub fn new(settings: Settings) -> Self {
        let lanes = vec![Lane::default(); settings.plan.pods * Signal::ALL.len()];
        let state = State {
            lanes,
            owners: HashMap::new(),
            tally: Tally::default(),
            delivery: Latencies::default(),
            first_delivery: None,
        };
        Self { settings, state: Mutex::new(state) }
    }

    /// Reads one request that is about to be acknowledged. `now` in nanoseconds since 1970, by the clock of the load.
    pub fn arrive(&self, signal: Signal, request: &[u8], now: u64) -> Result<(), Malformed> {
        let mut state = self.state();
        let state = &mut *state;
        state.tally.requests += 1;
        let mut owner_of: Option<(&[u8], Owner)> = None;
        let read = each_item(signal, request, &mut |place| {
            if owner_of.as_ref().is_none_or(|(resource, _)| !std::ptr::eq(*resource, place.resource)) {
                owner_of = Some((place.resource, self.owner(&mut state.owners, place.resource)?));
            }
            let (_, owner) = owner_of.as_ref().expect("just set");
            let parts = Parts::of(signal, place.item)?;
            self.item(state, signal, owner, &place, &parts, now);
            Ok(())
        });
        if read.is_err() {
            state.tally.malformed += 1;
            state.tally.example(|| format!("a request of {} bytes that is no OTLP", request.len()));
        }
        read
    }

    fn item(&self, state: &mut State, signal: Signal, owner: &Owner, place: &Place<'_>, parts: &Parts, now: u64) {
        let plan = &self.settings.plan;
        let item = parts.id.and_then(|id| plan.ids.decode(signal, id.value));
        let known = item.and_then(|item| {
            let template = plan.templates(signal).get(usize::from(item.variant))?;
            let is_ours = usize::from(item.pod) < plan.pods && item.sequence < lane_items_max(plan.pods);
            Some((item, template.slot(item.slot).filter(|_| is_ours)?))
        });
        let Some((item, slot)) = known else {
            state.tally.foreign += 1;
            state.tally.example(|| format!("an item of {signal:?} with an id that was never sent: {:x?}", parts.id));
            return;
        };
        let lane = &mut state.lanes[lane(item.pod, signal)];
        let is_new = lane.arrived.set(item.sequence);
        if !is_new {
            state.tally.duplicated += 1;
        } else if item.sequence < lane.next {
            state.tally.reordered += 1;
        }
        lane.next = lane.next.max(item.sequence + 1);
        if let Some(wrong) = self.wrong(signal, item, slot, place, parts, now) {
            state.tally.corrupted += 1;
            state.tally.example(|| format!("{} of {}: {wrong} changed", told(signal), pod_name(item.pod.into())));
        }
        match owner {
            Owner::Pod(pod) if *pod == item.pod => {}
            Owner::Changed(pod, what) if *pod == item.pod => {
                state.tally.corrupted += 1;
                state
                    .tally
                    .example(|| format!("{} of {}: its resource has {what}", told(signal), pod_name(item.pod.into())));
            }
            other => {
                state.tally.misattributed += 1;
                state.tally.example(|| format!("{} of {} {}", told(signal), pod_name(item.pod.into()), other.told()));
            }
        }
        if let Some(start) = parts.start.filter(|_| is_new) {
            let took = now.saturating_sub(start.value);
            state.first_delivery.get_or_insert(took);
            state.delivery.record_ns(took);
        }
    }

    /// What is not as it was sent.
    fn wrong(
        &self,
        signal: Signal,
        item: Item,
        slot: &Slot,
        place: &Place<'_>,
        parts: &Parts,
        now: u64,
    ) -> Option<&'static str> {
        let back = u64::from(item.slot - slot.first);
        let first = item.sequence.checked_sub(back).map(|sequence| Item { slot: slot.first, sequence, ..item });
        let first = first.map(|first| self.settings.plan.ids.encode(signal, first));
        let trace = if signal == Signal::Metrics { None } else { first.map(trace_id) };
        if parts.trace.map(|trace| trace.value) != trace {
            return Some("its trace id");
        }
        if parts.parent.map(|parent| parent.value) != first.filter(|_| slot.has_parent) {
            return Some("its parent");
        }
        let own = parts.id.map(|id| hexadecimal(id.value)).filter(|_| slot.has_own);
        if parts.own.map(|own| own.value) != own || parts.digest.wrapping_add(place.context) != slot.digest {
            return Some("its content");
        }
        let is_right = parts.start.zip(parts.end).is_some_and(|(start, end)| {
            let plausible = now.saturating_sub(LATE_MAX)..=now.saturating_add(EARLY_MAX);
            end.value.checked_sub(start.value) == Some(slot.duration) && plausible.contains(&start.value)
        });
        (!is_right).then_some("its time")
    }

    /// Reads a resource, or remembers it.
    fn owner(&self, owners: &mut HashMap<u64, Owner>, resource: &[u8]) -> Result<Owner, Malformed> {
        let key = hash(resource);
        if let Some(owner) = owners.get(&key) {
            return Ok(owner.clone());
        }
        let owner = self.read_owner(resource)?;
        if owners.len() < OWNERS_MAX {
            owners.insert(key, owner.clone());
        }
        Ok(owner)
    }

    fn read_owner(&self, resource: &[u8]) -> Result<Owner, Malformed> {
        let mut said = HashMap::new();
        let mut twice = None;
        for attribute in messages(resource, 1) {
            let (attribute, _) = attribute?;
            let key = messages(attribute, 1).next().transpose()?.map_or(&[][..], |(key, _)| key);
            let value = messages(attribute, 2).next().transpose()?.map_or(&[][..], |(value, _)| value);
            let text = messages(value, 1).next().and_then(Result::ok).map_or(&[][..], |(text, _)| text);
            let (key, text) = (String::from_utf8_lossy(key).into_owned(), String::from_utf8_lossy(text).into_owned());
            if said.insert(key.clone(), text).is_some() {
                twice = Some(key);
            }
        }
        if let Some(key) = twice {
            return Ok(Owner::Unclear(format!("came under a resource that has {key} twice")));
        }
        let name = said.get(INSTANCE).cloned().unwrap_or_default();
        let Some(pod) = (0..self.settings.plan.pods).find(|pod| pod_name(*pod) == name) else {
            return Ok(Owner::Unclear(format!("came under {INSTANCE}={name:?}")));
        };
        if let Some(attested) = &self.settings.attested {
            let value = said.get(attested);
            if value != Some(&name) {
                return Ok(Owner::Unclear(format!("came under {attested}={value:?}")));
            }
        }
        let pod = u16::try_from(pod).expect("at most PODS_MAX pods");
        let changed = self.settings.resource.iter().find(|(key, value)| said.get(key) != Some(value));
        Ok(match changed {
            None => Owner::Pod(pod),
            Some((key, value)) => Owner::Changed(pod, format!("{key}={:?} for {value:?}", said.get(key))),
        })
    }

    /// Different items so far.
    pub fn delivered(&self) -> u64 {
        self.state().lanes.iter().map(|lane| lane.arrived.ones()).sum()
    }

    /// Items that were acknowledged and have not arrived.
    pub fn missing(&self, ledger: &Ledger) -> u64 {
        let lanes = ledger.lanes();
        lanes.iter().zip(&self.state().lanes).map(|(sent, lane)| sent.acknowledged.missing_in(&lane.arrived)).sum()
    }

    /// From an item's start to its first arrival. What was acknowledged and has not arrived is slower than all of them.
    pub fn delivery(&self, ledger: &Ledger) -> Latencies {
        let missing = self.missing(ledger);
        let mut delivery = self.state().delivery.clone();
        delivery.record_all_unanswered(missing);
        delivery
    }

    /// What was measured of deliveries until now does not count.
    pub fn forget_delivery(&self) {
        self.state().delivery = Latencies::default();
    }

    /// How long the first item that arrived was on its way, in nanoseconds.
    pub fn first_delivery(&self) -> Option<u64> {
        self.state().first_delivery
    }

    /// The account as it is now.
    pub fn account(&self, ledger: &Ledger) -> Account {
        let sent = ledger.lanes();
        let state = self.state();
        let pairs = || sent.iter().zip(&state.lanes);
        let tally = state.tally.clone();
        Account {
            sent: sent.iter().map(|lane| lane.sent).sum(),
            acknowledged: sent.iter().map(|lane| lane.acknowledged.ones()).sum(),
            delivered: state.lanes.iter().map(|lane| lane.arrived.ones()).sum(),
            lost: pairs().map(|(sent, lane)| sent.acknowledged.missing_in(&lane.arrived)).sum(),
            delivered_unacknowledged: pairs().map(|(sent, lane)| lane.arrived.missing_in(&sent.acknowledged)).sum(),
            duplicated: tally.duplicated,
            corrupted: tally.corrupted,
            misattributed: tally.misattributed,
            foreign: tally.foreign,
            malformed: tally.malformed,
            reordered: tally.reordered,
            requests: tally.requests,
            examples: tally.examples,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tally {
    fn example(&mut self, words: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(words());
        }
    }
}

impl Owner {
    fn told(&self) -> String {
        match self {
            Self::Pod(pod) | Self::Changed(pod, _) => format!("came under the name of {}", pod_name((*pod).into())),
            Self::Unclear(words) => words.clone(),
        }
    }
}

fn told(signal: Signal) -> &'static str {
    match signal {
        Signal::Traces => "a span",
        Signal::Metrics => "a data point",
        Signal::Logs => "a log record",
    }
}

impl Account {
    /// What is wrong, a sentence each; empty: nothing.
    pub fn mistakes(&self) -> Vec<String> {
        let one = |count: u64, what: &str| (count > 0).then(|| format!("{count} {what}"));
        [
            one(self.lost, "items were acknowledged and lost"),
            one(self.duplicated, "items arrived more often than once"),
            one(self.corrupted, "items arrived changed"),
            one(self.misattributed, "items arrived under another pod's name, or none"),
            one(self.foreign, "items arrived that nobody sent"),
            one(self.malformed, "requests arrived that are no OTLP"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
