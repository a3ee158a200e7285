//! A request that is encoded once and sent many times: ids, times and the pod's name are patched where they stand.
//!
//! Owns the places and what the rest of each item must look like when it arrives. Sending costs one copy of the bytes and a
//! few writes an item, nothing is encoded.

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use crate::identity::{
    Ids, Item, PODS_MAX, SLOTS_MAX, Signal, VARIANTS_MAX, hexadecimal, pod_name, rename_pod, trace_id,
};
use crate::item::{Parts, each_item};
use crate::profile::{Profile, TRACE_SPANS};

/// What all of a signal's requests of a run are made of.
#[derive(Debug)]
pub struct Template {
    bytes: Vec<u8>,
    pod_at: usize,
    pod_length: usize,
    slots: Vec<Slot>,
}

/// One item of a template.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// Digest of what is not patched.
    pub digest: u64,
    /// Slot of the first item of the same trace, whose id the trace id is made of.
    pub first: u16,
    /// From start to end, in nanoseconds.
    pub duration: u64,
    /// Whether it names a parent.
    pub has_parent: bool,
    /// Whether it has the attribute [`OWN`](crate::profile::OWN).
    pub has_own: bool,
    id_at: usize,
    trace_at: Option<usize>,
    parent_at: usize,
    own_at: usize,
    start_at: usize,
    end_at: usize,
}

/// One request to be made.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    /// Whose it is.
    pub pod: u16,
    /// Which of the templates this is.
    pub variant: u8,
    /// The sequence of its first item.
    pub first: u64,
    /// When its items began, in nanoseconds since 1970.
    pub time: u64,
}

impl Template {
    fn new(signal: Signal, profile: &Profile, items: usize, rng: &mut Rng) -> Result<Self> {
        let bytes = profile.request(signal, items, rng);
        let name = pod_name(0);
        let mut pod_at = None;
        let mut slots: Vec<Slot> = Vec::with_capacity(items);
        let mut incomplete = false;
        each_item(signal, &bytes, &mut |place| {
            pod_at = find(place.resource, name.as_bytes()).map(|at| place.resource_at + at);
            let parts = Parts::of(signal, place.item)?;
            let at = |offset: usize| place.item_at + offset;
            let (Some(id), Some(start), Some(end)) = (parts.id, parts.start, parts.end) else {
                incomplete = true;
                return Ok(());
            };
            let slot = slots.len();
            let first = if signal == Signal::Traces { slot - slot % TRACE_SPANS } else { slot };
            slots.push(Slot {
                digest: parts.digest.wrapping_add(place.context),
                first: u16::try_from(first).unwrap_or(u16::MAX),
                duration: end.value - start.value,
                has_parent: parts.parent.is_some(),
                has_own: parts.own.is_some(),
                id_at: at(id.at),
                trace_at: parts.trace.map(|trace| at(trace.at)),
                parent_at: parts.parent.map_or(0, |parent| at(parent.at)),
                own_at: parts.own.map_or(0, |own| at(own.at)),
                start_at: at(start.at),
                end_at: at(end.at),
            });
            Ok(())
        })?;
        ensure!(!incomplete && slots.len() == items, "the profile's items have an id and two times each");
        let pod_at = pod_at.context("the profile's resource names the pod")?;
        Ok(Self { bytes, pod_at, pod_length: name.len(), slots })
    }

    /// Items in a request.
    pub fn items(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of a request.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a template has at least one item.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What the item in that place must look like.
    pub fn slot(&self, slot: u16) -> Option<&Slot> {
        self.slots.get(usize::from(slot))
    }

    /// Appends the request to `out`.
    pub fn write(&self, signal: Signal, ids: &Ids, stamp: Stamp, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(&self.bytes);
        let request = &mut out[begin..];
        rename_pod(&mut request[self.pod_at..self.pod_at + self.pod_length], stamp.pod);
        let mut first_id = 0;
        for (number, slot) in self.slots.iter().enumerate() {
            let place = u16::try_from(number).expect("at most SLOTS_MAX slots");
            let item =
                Item { pod: stamp.pod, variant: stamp.variant, slot: place, sequence: stamp.first + number as u64 };
            let id = ids.encode(signal, item);
            if slot.first == place {
                first_id = id;
            }
            match signal {
                Signal::Metrics => put(request, slot.id_at, &id.to_le_bytes()),
                Signal::Traces | Signal::Logs => put(request, slot.id_at, &id.to_be_bytes()),
            }
            if let Some(trace_at) = slot.trace_at {
                put(request, trace_at, &trace_id(first_id));
            }
            if slot.has_parent {
                put(request, slot.parent_at, &first_id.to_be_bytes());
            }
            if slot.has_own {
                put(request, slot.own_at, &hexadecimal(id));
            }
            put(request, slot.start_at, &stamp.time.to_le_bytes());
            put(request, slot.end_at, &(stamp.time + slot.duration).to_le_bytes());
        }
    }
}

/// What a run sends: the templates of each signal, and the ids.
#[derive(Debug)]
pub struct Plan {
    /// Makes and reads ids.
    pub ids: Ids,
    /// Pods, numbered from 0.
    pub pods: usize,
    templates: [Vec<Template>; 3],
}

/// Items in a request, of each signal; 0: none are sent.
pub type Batch = [usize; 3];

/// Items of all templates of a signal together, unless one request has more: several smaller ones, one large one.
const TEMPLATE_ITEMS: usize = 2_048;

impl Plan {
    /// The same arguments make the same bytes.
    pub fn new(profile: &Profile, seed: u64, pods: usize, batch: Batch) -> Result<Self> {
        ensure!((1..=PODS_MAX).contains(&pods), "1 to {PODS_MAX} pods");
        let mut templates = [const { Vec::new() }; 3];
        for (signal, items) in Signal::ALL.into_iter().zip(batch).filter(|(_, items)| *items > 0) {
            ensure!(items <= SLOTS_MAX, "at most {SLOTS_MAX} items in a request");
            let mut rng = Rng::with_seed(seed ^ (signal.index() as u64) << 32);
            let variants = (TEMPLATE_ITEMS / items).clamp(1, VARIANTS_MAX);
            templates[signal.index()] =
                (0..variants).map(|_| Template::new(signal, profile, items, &mut rng)).collect::<Result<_>>()?;
        }
        Ok(Self { ids: Ids::new(seed), pods, templates })
    }

    /// The templates of a signal; none when it is not sent.
    pub fn templates(&self, signal: Signal) -> &[Template] {
        &self.templates[signal.index()]
    }
}

fn put(request: &mut [u8], at: usize, bytes: &[u8]) {
    request[at..at + bytes.len()].copy_from_slice(bytes);
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
