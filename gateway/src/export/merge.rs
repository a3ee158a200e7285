//! What shares a request: concatenation, taking apart again, and dividing an answer among the members.
//!
//! Pure. Concatenating two serialised `Export*ServiceRequest` messages gives a valid third, and each resource in it still
//! says whose it is.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::base::{Sequence, Signal};

/// Payloads from here on go alone: their fixed cost is small beside the copy (measured: from about 64 KiB on).
pub(crate) const LONE_BYTES_MIN: usize = 64 * 1024;

/// Merged requests end here even where the destination takes more: beyond it, waiting costs cache misses and gains nothing.
pub(crate) const MERGED_BYTES_MAX: usize = 1024 * 1024;

/// Which batch a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// Only in memory, with its number among those.
    Volatile(u64),
    /// In the log.
    Logged(Sequence),
    /// A dead letter that is sent again; its place in the log.
    Letter(Sequence),
}

/// One batch, or a piece of one, on its way to one destination.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) key: Key,
    pub(crate) signal: Signal,
    pub(crate) items: u32,
    /// On the log's clock; 0 for what is in no log.
    pub(crate) appended_unix_ms: u64,
    pub(crate) payload: Bytes,
    /// One of several pieces of the record: the record is done when all of them are.
    pub(crate) piece: bool,
    /// Refused alone, when the destination had accepted so many requests.
    pub(crate) refused: Option<u64>,
    /// For people, should it become a dead letter.
    pub(crate) refusals: Refusals,
}

/// How often the destination refused a record for its content, alone or merged with others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Refusals {
    pub(crate) count: u32,
    /// On the log's clock.
    pub(crate) first_unix_ms: u64,
    pub(crate) last_unix_ms: u64,
}

impl Refusals {
    /// One more.
    pub(crate) fn note(&mut self, now_unix_ms: u64) {
        if self.count == 0 {
            self.first_unix_ms = now_unix_ms;
        }
        self.count = self.count.saturating_add(1);
        self.last_unix_ms = now_unix_ms;
    }
}

/// A record in a request, and the lane it belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) lane: u32,
    pub(crate) record: Record,
    /// A merged request that it was in was refused, when the destination had accepted so many requests.
    pub(crate) suspected: Option<u64>,
}

/// The bytes of a request: a prefix (gRPC's five bytes) and the message, sent without being joined.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    prefix: [u8; 5],
    at: usize,
    message: Bytes,
}

impl Body {
    /// The message behind gRPC's prefix.
    pub(crate) fn grpc(message: Bytes, compressed: bool) -> Self {
        // Messages are at most `max_message_bytes`, which configuration keeps far below 4 GiB.
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
        let prefix = [u8::from(compressed), length[0], length[1], length[2], length[3]];
        Self { prefix, at: 0, message }
    }

    /// The message alone.
    pub(crate) fn plain(message: Bytes) -> Self {
        Self { prefix: [0; 5], at: 5, message }
    }
}

impl Buf for Body {
    fn remaining(&self) -> usize {
        5 - self.at + self.message.len()
    }

    fn chunk(&self) -> &[u8] {
        if self.at < 5 { &self.prefix[self.at..] } else { &self.message }
    }

    fn advance(&mut self, count: usize) {
        let of_prefix = count.min(5 - self.at);
        self.at += of_prefix;
        self.message.advance(count - of_prefix);
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [std::io::IoSlice<'a>]) -> usize {
        let parts = [&self.prefix[self.at..], &self.message];
        let mut used = 0;
        for (slot, part) in dst.iter_mut().zip(parts.into_iter().filter(|part| !part.is_empty())) {
            *slot = std::io::IoSlice::new(part);
            used += 1;
        }
        used
    }
}

/// One message of all members. A lone one is not copied.
pub(crate) fn message(members: &[Member]) -> Bytes {
    if let [member] = members {
        return member.record.payload.clone();
    }
    let mut out = BytesMut::with_capacity(members.iter().map(|member| member.record.payload.len()).sum());
    members.iter().for_each(|member| out.put_slice(&member.record.payload));
    out.freeze()
}

/// Two halves of a merged request that was refused. Never called for a lone record.
pub(crate) fn bisect(mut members: Vec<Member>) -> [Vec<Member>; 2] {
    let second = members.split_off(members.len() / 2);
    [members, second]
}

/// Divides `rejected` items among members by their items: an estimate, since an answer does not say whose they were.
/// The parts sum up to `rejected`, or to all items where the destination claims more.
pub(crate) fn apportion(rejected: u64, items: &[u32]) -> Vec<u64> {
    let total: u64 = items.iter().copied().map(u64::from).sum();
    let rejected = rejected.min(total);
    // Cumulative rounding: each part is the difference of two rounded sums, so nothing is lost or made up.
    let share = |upto: u64| u128::from(rejected) * u128::from(upto) / u128::from(total.max(1));
    let mut before = 0;
    let parts = items.iter().map(|items| {
        let after = before + u64::from(*items);
        let part = share(after) - share(before);
        before = after;
        u64::try_from(part).unwrap_or(u64::MAX)
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(lane: u32, payload: &'static str) -> Member {
        let payload = Bytes::from_static(payload.as_bytes());
        let key = Key::Logged(Sequence(u64::from(lane)));
        Member {
            lane,
            record: Record {
                key,
                signal: Signal::Traces,
                items: 1,
                appended_unix_ms: 0,
                payload,
                piece: false,
                refused: None,
                refusals: Refusals::default(),
            },
            suspected: None,
        }
    }

    fn read(mut body: Body, step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while body.has_remaining() {
            let chunk = &body.chunk()[..body.chunk().len().min(step)];
            out.extend_from_slice(chunk);
            let count = chunk.len();
            body.advance(count);
        }
        out
    }

    /// Scenario: a body is written in steps of any size.
    /// Guarantees: the prefix says compression and length, and the bytes are those of the message.
    #[test]
    fn a_body_reads_the_same_in_steps_of_any_size() {
        let message = message(&[member(1, "abc"), member(2, "defg")]);
        for step in 1..=12 {
            assert_eq!(read(Body::grpc(message.clone(), true), step), b"\x01\0\0\0\x07abcdefg");
            assert_eq!(read(Body::plain(message.clone()), step), b"abcdefg");
        }
        let body = Body::grpc(message, false);
        let mut slices = [std::io::IoSlice::new(&[]); 4];
        assert_eq!(body.chunks_vectored(&mut slices), 2);
        assert_eq!(slices[0].len() + slices[1].len(), body.remaining());
    }

    /// Scenario: one poison among members, taken apart until it is alone.
    /// Guarantees: the halves hold every member once, and the poison is found in log2(n) rounds.
    #[test]
    fn halving_finds_the_poison() {
        let mut group: Vec<_> = (0..100).map(|lane| member(lane, "x")).collect();
        let mut rounds = 0;
        while group.len() > 1 {
            let lanes: Vec<_> = group.iter().map(|member| member.lane).collect();
            let [first, second] = bisect(group);
            let both: Vec<_> = first.iter().chain(&second).map(|member| member.lane).collect();
            assert_eq!(both, lanes);
            group = if first.iter().any(|member| member.lane == 73) { first } else { second };
            rounds += 1;
        }
        assert!(rounds <= 7 && group[0].lane == 73);
    }

    /// Scenario: a merged request of three tenants is accepted in part.
    /// Guarantees: the estimate follows the item counts, sums up, and never exceeds what a tenant sent.
    #[test]
    fn rejected_items_are_apportioned_by_item_count() {
        assert_eq!(apportion(10, &[50, 30, 20]), [5, 3, 2]);
        assert_eq!(apportion(1, &[1, 1, 1]).iter().sum::<u64>(), 1);
        assert_eq!(apportion(u64::MAX, &[2, 3]), [2, 3]);
        assert_eq!(apportion(5, &[0, 0]), [0, 0]);
        for rejected in 0..=60 {
            let items = [7, 0, 13, 40];
            let parts = apportion(rejected, &items);
            assert_eq!(parts.iter().sum::<u64>(), rejected);
            assert!(parts.iter().zip(items).all(|(part, items)| *part <= u64::from(items)), "{parts:?}");
        }
    }
}
