//! The sum of all changes. Pure: the same changes in the same order give the same state, which is what replay needs.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use prost::Message;

use super::record::{Change, Counted, Image, Item, SeenImage, ServiceImage, TenantImage};
use crate::base::{Sequence, Signal, TenantId};

/// Pairs of tenant and service that are counted by name; what comes after them is counted as [`OTHER`] of its tenant.
pub(super) const SERIES_MAX: usize = 1_000;

/// The service of items beyond [`SERIES_MAX`].
pub(super) const OTHER: &str = "other";

/// What is kept of each signal.
pub(super) const ITEMS_MAX: usize = 200;
/// The same in bytes, as encoded.
pub(super) const ITEM_BYTES_MAX: usize = 256 * 1024;

/// Counts, counted records and last items.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) tenants: BTreeMap<u32, Tally>,
    /// By `Signal::index`.
    pub(super) latest: [Latest; 3],
    /// Records that came again, since this process opened the store.
    pub(super) repeated: u64,
    series: usize,
}

/// One tenant's counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) name: String,
    pub(super) services: BTreeMap<String, [u64; 3]>,
    /// By `Signal::index`: each has its own cursor, and one that is routed here later begins further back.
    seen: [Seen; 3],
}

/// Which records of a signal are counted: all up to `below`, and those in `beyond`.
#[derive(Debug, Default)]
struct Seen {
    below: u64,
    beyond: BTreeSet<u64>,
}

/// The last items of a signal, oldest first.
#[derive(Debug, Default)]
pub(super) struct Latest {
    pub(super) items: VecDeque<Item>,
    bytes: usize,
}

impl State {
    /// Whether that record is counted already.
    pub(super) fn has_counted(&self, tenant: TenantId, signal: Signal, sequence: Sequence) -> bool {
        self.tenants.get(&tenant.0).is_some_and(|tally| tally.seen[signal.index()].contains(sequence.0))
    }

    /// Records that came again, for people.
    pub(super) fn count_repeated(&mut self, records: usize) {
        self.repeated = self.repeated.saturating_add(records as u64);
    }

    /// Adds a change. Its records must not be counted yet.
    pub(super) fn apply(&mut self, change: Change) {
        for record in change.records {
            self.count(record);
        }
        for item in change.items {
            self.keep(item);
        }
    }

    fn count(&mut self, record: Counted) {
        let tally = self.tenants.entry(record.tenant).or_default();
        tally.name = record.name;
        let Some(signal) = signal(record.signal) else { return };
        tally.seen[signal.index()].insert(record.sequence, record.acknowledged);
        for counted in record.services {
            let entry = match tally.services.entry(counted.service) {
                Entry::Vacant(_) if self.series >= SERIES_MAX => tally.services.entry(OTHER.to_owned()),
                entry => entry,
            };
            if matches!(&entry, Entry::Vacant(vacant) if vacant.key() != OTHER) {
                self.series += 1;
            }
            let count = &mut entry.or_default()[signal.index()];
            *count = count.saturating_add(counted.items);
        }
    }

    fn keep(&mut self, item: Item) {
        if let Some(signal) = signal(item.signal) {
            self.latest[signal.index()].push(item);
        }
    }

    /// Everything, to start a journal with.
    pub(super) fn image(&self) -> Image {
        let tenants = self.tenants.iter().map(|(tenant, tally)| TenantImage {
            tenant: *tenant,
            name: tally.name.clone(),
            services: tally.services.iter().map(service_image).collect(),
            seen: tally.seen.iter().map(Seen::image).collect(),
        });
        let items = self.latest.iter().flat_map(|latest| latest.items.iter().cloned());
        Image { tenants: tenants.collect(), items: items.collect() }
    }

    /// What an image says.
    pub(super) fn from_image(image: Image) -> Self {
        let mut state = Self::default();
        for tenant in image.tenants {
            let mut seen: [Seen; 3] = Default::default();
            seen.iter_mut().zip(tenant.seen).for_each(|(seen, image)| *seen = Seen::from_image(image));
            let counts = tenant.services.into_iter().map(|s| (s.service, [s.spans, s.metric_points, s.log_records]));
            let services: BTreeMap<_, _> = counts.collect();
            state.series += services.keys().filter(|service| *service != OTHER).count();
            state.tenants.insert(tenant.tenant, Tally { name: tenant.name, services, seen });
        }
        for item in image.items {
            state.keep(item);
        }
        state
    }
}

fn signal(number: u32) -> Option<Signal> {
    Signal::from_number(u8::try_from(number).ok()?)
}

fn service_image((service, counts): (&String, &[u64; 3])) -> ServiceImage {
    let [spans, metric_points, log_records] = *counts;
    ServiceImage { service: service.clone(), spans, metric_points, log_records }
}

impl Seen {
    fn image(&self) -> SeenImage {
        SeenImage { below: self.below, beyond: self.beyond.iter().copied().collect() }
    }

    fn from_image(image: SeenImage) -> Self {
        Self { below: image.below, beyond: image.beyond.into_iter().collect() }
    }

    fn contains(&self, sequence: u64) -> bool {
        sequence <= self.below || self.beyond.contains(&sequence)
    }

    fn insert(&mut self, sequence: Option<u64>, acknowledged: u64) {
        if acknowledged > self.below {
            self.below = acknowledged;
            self.beyond = self.beyond.split_off(&acknowledged.saturating_add(1));
        }
        if let Some(sequence) = sequence
            && sequence > self.below
        {
            self.beyond.insert(sequence);
        }
    }
}

impl Latest {
    pub(super) fn push(&mut self, item: Item) {
        self.bytes += item.encoded_len();
        self.items.push_back(item);
        while self.items.len() > ITEMS_MAX || self.bytes > ITEM_BYTES_MAX {
            let Some(oldest) = self.items.pop_front() else { return };
            self.bytes -= oldest.encoded_len();
        }
    }
}
