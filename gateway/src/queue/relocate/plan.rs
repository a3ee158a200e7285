//! Which segments are worth emptying.
//!
//! Pure but for index blocks that it reads where a cursor is in the middle of a range. Two reasons:
//!
//! - Space: the sealed segments take more than 1.5 x what is live in them, and the slack. Then those with the smallest live share
//!   go, oldest first among similar ones, until half of the slack is left or the target is full. Since the average share is below
//!   two thirds, so is the smallest: at most two bytes are copied for each that becomes free.
//! - Number: eight segments of about one size, each at most an eighth of a full one, become one. So a record is copied again only
//!   into a segment about eight times as long, and few files stay however little each of many segments had.
//!
//! It ends: the first frees at least a third of what it empties, the second leaves fewer files, and neither makes anything idle.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::super::disk::Disk;
use super::super::footer;
use super::super::format::SEGMENT_HEADER_BYTES;
use super::super::index::Segment;
use super::super::record;
use super::{Feed, Standing};
use crate::base::TenantId;

/// Segments that one job empties at most: each keeps a few index blocks in memory.
const SOURCES_MAX: usize = 64;
/// Segments of about one size that become one, and by how much sizes differ.
const SMALL_MAX: usize = 8;

/// A job.
#[derive(Debug)]
pub(crate) struct Plan<D: Disk> {
    /// What is to be emptied.
    pub(super) sources: Vec<Arc<Segment<D>>>,
    /// An upper bound of the copy; 0: nothing of them is live.
    pub(crate) bytes: u64,
    /// By which it was decided.
    pub(super) standing: Box<Standing>,
}

/// A segment, and what is live of it.
#[derive(Debug)]
struct Candidate<D: Disk> {
    segment: Arc<Segment<D>>,
    live: u64,
    /// Whose that is.
    owners: Vec<TenantId>,
}

/// The sum of some candidates' live records in one segment.
#[derive(Debug, Default)]
struct Target {
    owners: BTreeSet<TenantId>,
    owner_bytes: u64,
    live: u64,
    sources: usize,
}

/// The best job there is, if any is worth it.
pub(super) fn plan<D: Disk>(
    disk: &D,
    sealed: &[Arc<Segment<D>>],
    standing: Box<Standing>,
) -> io::Result<Option<Plan<D>>> {
    let candidates = sealed.iter().map(|segment| Candidate::of(disk, segment, &standing));
    let candidates = candidates.collect::<io::Result<Vec<_>>>()?;
    let chosen = too_much_idle(&candidates, &standing).or_else(|| too_many(&candidates, &standing));
    Ok(chosen.map(|(sources, target)| {
        let bytes = if target.live == 0 { 0 } else { target.bytes() };
        Plan { sources, bytes, standing }
    }))
}

type Chosen<D> = (Vec<Arc<Segment<D>>>, Target);

fn too_much_idle<D: Disk>(candidates: &[Candidate<D>], standing: &Standing) -> Option<Chosen<D>> {
    let taken: u64 = candidates.iter().map(|candidate| candidate.segment.length).sum();
    let live: u64 = candidates.iter().map(|candidate| candidate.live).sum();
    let excess = taken.checked_sub(live + live / 2 + standing.slack_bytes).filter(|excess| *excess > 0)?;
    let wanted = excess + standing.slack_bytes / 2;
    let mut worth: Vec<_> = candidates.iter().filter(|candidate| candidate.is_worth(standing)).collect();
    worth.sort_by_key(|candidate| (candidate.live * 16 / candidate.segment.length.max(1), candidate.segment.key.id));
    let (mut sources, mut target, mut freed) = (Vec::new(), Target::default(), 0);
    for candidate in worth {
        if sources.len() == SOURCES_MAX || freed >= wanted + target.live || !target.add(candidate, standing) {
            break;
        }
        freed += candidate.segment.length;
        sources.push(candidate.segment.clone());
    }
    (freed > target.bytes()).then_some((sources, target))
}

fn too_many<D: Disk>(candidates: &[Candidate<D>], standing: &Standing) -> Option<Chosen<D>> {
    let size =
        |candidate: &Candidate<D>| (standing.segment_bytes / candidate.segment.length.max(1)).ilog(SMALL_MAX as u64);
    let mut small: Vec<_> = candidates
        .iter()
        .filter(|candidate| candidate.segment.length <= standing.segment_bytes / SMALL_MAX as u64)
        .filter(|candidate| !candidate.segment.is_spoiled())
        .collect();
    small.sort_by_key(|candidate| (size(candidate), candidate.segment.key.id));
    let group = small.chunk_by(|one, next| size(one) == size(next)).find(|group| group.len() >= SMALL_MAX)?;
    let (mut sources, mut target) = (Vec::new(), Target::default());
    for candidate in group.iter().take(SOURCES_MAX) {
        if !target.add(candidate, standing) {
            break;
        }
        sources.push(candidate.segment.clone());
    }
    (sources.len() > 1).then_some((sources, target))
}

impl<D: Disk> Candidate<D> {
    fn of(disk: &D, segment: &Arc<Segment<D>>, standing: &Standing) -> io::Result<Self> {
        let mut candidate = Self { segment: segment.clone(), live: 0, owners: Vec::new() };
        for range in &segment.ranges {
            let live = match standing.live_bytes(range) {
                Some(bytes) => bytes,
                None => {
                    let mut feed = Feed::new(segment.clone(), *range);
                    let mut live = 0;
                    while let Some(entry) = feed.peek(disk)? {
                        live += if standing.is_live(range.tenant, &entry) { entry.cost() } else { 0 };
                        feed.skip();
                    }
                    live
                }
            };
            if live > 0 {
                candidate.live += live;
                candidate.owners.push(range.tenant);
            }
        }
        Ok(candidate)
    }

    fn is_worth(&self, standing: &Standing) -> bool {
        let idle = self.segment.length.saturating_sub(self.live);
        // What a short segment has beside its records is not worth a file of its own.
        !self.segment.is_spoiled()
            && (self.live == 0 || (idle > self.segment.length / 3 && idle >= standing.segment_bytes / 32))
    }
}

impl Target {
    /// Adds a candidate's live records, if there is room for them.
    fn add<D: Disk>(&mut self, candidate: &Candidate<D>, standing: &Standing) -> bool {
        let new: Vec<_> = candidate.owners.iter().filter(|owner| !self.owners.contains(owner)).collect();
        let new_bytes: u64 = new.iter().map(|owner| owner_bytes(**owner, standing)).sum();
        let before = self.bytes();
        if before + candidate.live + new_bytes + source_bytes(1) > standing.segment_bytes && self.sources > 0 {
            return false;
        }
        self.owners.extend(new);
        self.owner_bytes += new_bytes;
        self.live += candidate.live;
        self.sources += 1;
        true
    }

    fn bytes(&self) -> u64 {
        SEGMENT_HEADER_BYTES
            + self.live
            + self.owner_bytes
            + source_bytes(self.sources)
            + footer::footer_bytes_max(0, self.owners.len() + 1)
    }
}

fn source_bytes(sources: usize) -> u64 {
    2 * footer::cost(sources * 8)
}

/// What a tenant's own record and its range take.
fn owner_bytes(owner: TenantId, standing: &Standing) -> u64 {
    let mut payload = Vec::new();
    if let Some((_, tenant)) = standing.owner(owner) {
        record::put_tenant(&mut payload, &tenant.record);
    }
    footer::cost(payload.len()) + footer::RANGE_BYTES as u64 + 4
}
