//! Which item is which: an id that names pod, template, place and number, and looks like the random ids of an SDK.
//!
//! ```text
//! id       1 bit, always set | 12 bits pod | 3 bits variant | 13 bits slot | 35 bits sequence
//! on wire  id xor key(seed, signal), through a mixing that can be undone: without a regular pattern that would compress
//!          better than the ids of an application
//! traces   id as span id; the id of the first span of its trace, mixed again, twice, as trace id
//! logs     id as span id; the trace id likewise
//! metrics  id as integer value of the data point
//! ```
//!
//! Any eight bytes that are not an id of this run are told as such, but for one case in some millions.

use serde::{Deserialize, Serialize};

/// Most pods in a run.
pub const PODS_MAX: usize = 1 << 12;
/// Most items in a request.
pub const SLOTS_MAX: usize = 1 << 13;
/// Most different requests that a run repeats, of one signal.
pub const VARIANTS_MAX: usize = 1 << 3;

const SEQUENCE_BITS: u32 = 35;
const SLOT_BITS: u32 = 13;
const VARIANT_BITS: u32 = 3;
const POD_BITS: u32 = 12;

/// One of OTLP's three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// Spans.
    Traces,
    /// Data points.
    Metrics,
    /// Log records.
    Logs,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Traces, Self::Metrics, Self::Logs];

    /// Its place in [`Signal::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The path of its OTLP/gRPC Export.
    pub fn grpc_path(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        }
    }

    /// The path of its OTLP/HTTP endpoint.
    pub fn http_path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
            Self::Logs => "/v1/logs",
        }
    }

    /// Whose path that is, of either protocol.
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| path == signal.grpc_path() || path == signal.http_path())
    }
}

/// What an id says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// The pod that sent it.
    pub pod: u16,
    /// Which of the prepared requests it was sent in.
    pub variant: u8,
    /// Its place in that request.
    pub slot: u16,
    /// Its number among the pod's items of this signal, without gaps.
    pub sequence: u64,
}

/// Makes and reads the ids of one run.
#[derive(Debug, Clone, Copy)]
pub struct Ids {
    keys: [u64; 3],
}

impl Ids {
    /// Runs with different seeds do not know each other's ids.
    pub fn new(seed: u64) -> Self {
        // Without the bit that is always set in an id: the result is never the id of zeroes, which OTLP forbids.
        let key = |signal: Signal| mix(seed ^ mix(signal.index() as u64 + 1)) >> 1;
        Self { keys: Signal::ALL.map(key) }
    }

    /// The id on the wire.
    pub fn encode(&self, signal: Signal, item: Item) -> u64 {
        let mut packed = 1 << POD_BITS | u64::from(item.pod);
        packed = packed << VARIANT_BITS | u64::from(item.variant);
        packed = packed << SLOT_BITS | u64::from(item.slot);
        packed = packed << SEQUENCE_BITS | item.sequence;
        mix(packed ^ self.keys[signal.index()])
    }

    /// What an id on the wire says; `None`: it is none of this run's.
    pub fn decode(&self, signal: Signal, id: u64) -> Option<Item> {
        let packed = unmix(id) ^ self.keys[signal.index()];
        let field = |shift: u32, bits: u32| packed >> shift & ((1 << bits) - 1);
        let item = Item {
            pod: u16::try_from(field(SEQUENCE_BITS + SLOT_BITS + VARIANT_BITS, POD_BITS)).ok()?,
            variant: u8::try_from(field(SEQUENCE_BITS + SLOT_BITS, VARIANT_BITS)).ok()?,
            slot: u16::try_from(field(SEQUENCE_BITS, SLOT_BITS)).ok()?,
            sequence: field(0, SEQUENCE_BITS),
        };
        (packed >> 63 == 1).then_some(item)
    }
}

/// The trace id of the items whose first one has this id.
pub fn trace_id(first: u64) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&mix(first).to_be_bytes());
    out[8..].copy_from_slice(&mix(!first).to_be_bytes());
    out
}

/// A pod's name: of equal length for all, so that it can be patched where it stands.
pub fn pod_name(pod: usize) -> String {
    format!("cart-{pod:04}")
}

/// Digits of an id as text, hexadecimal.
pub const ID_DIGITS: usize = 16;

/// An id as text.
pub(crate) fn hexadecimal(id: u64) -> [u8; ID_DIGITS] {
    let mut rest = id;
    let mut out = [0; ID_DIGITS];
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[usize::try_from(rest & 0xf).expect("four bits")];
        rest >>= 4;
    }
    out
}

/// Makes a pod's name of another one's, where it stands.
pub(crate) fn rename_pod(name: &mut [u8], pod: u16) {
    let mut rest = pod;
    for digit in name.iter_mut().rev().take(4) {
        *digit = b'0' + u8::try_from(rest % 10).expect("a digit");
        rest /= 10;
    }
}

/// The finalizer of splitmix64: a bijection.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

fn unmix(mut x: u64) -> u64 {
    x = (x ^ x >> 31 ^ x >> 62).wrapping_mul(0x3196_42b2_d24d_8ec3);
    x = (x ^ x >> 27 ^ x >> 54).wrapping_mul(0x96de_1b17_3f11_9089);
    x ^ x >> 30 ^ x >> 60
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: every pod's name is made of another one's.
    /// Guarantees: it is the name that it has elsewhere.
    #[test]
    fn a_pod_is_named_the_same_in_a_request() {
        for pod in 0..PODS_MAX {
            let mut name = pod_name((pod + 1) * 7 % PODS_MAX).into_bytes();
            rename_pod(&mut name, u16::try_from(pod).unwrap());
            assert_eq!(name, pod_name(pod).as_bytes());
        }
    }

    /// Scenario: ids at the edges of their fields and by chance, of each signal.
    /// Guarantees: what was encoded is what is read, and another signal's or another run's id is not.
    #[test]
    fn ids_say_what_they_were_made_of() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let (ids, others) = (Ids::new(seed), Ids::new(seed ^ 1));
        let last = Item { pod: 4095, variant: 7, slot: 8191, sequence: (1 << 35) - 1 };
        let chance = |_| Item {
            pod: rng.u16(..4096),
            variant: rng.u8(..8),
            slot: rng.u16(..8192),
            sequence: rng.u64(..1 << 35),
        };
        for item in (0..10_000).map(chance).chain([last, Item { pod: 0, variant: 0, slot: 0, sequence: 0 }]) {
            for signal in Signal::ALL {
                let id = ids.encode(signal, item);
                assert_eq!(ids.decode(signal, id), Some(item));
                assert_ne!(others.decode(signal, id), Some(item));
                assert_ne!(id, 0);
            }
            assert_ne!(ids.decode(Signal::Logs, ids.encode(Signal::Traces, item)), Some(item));
        }
    }
}
