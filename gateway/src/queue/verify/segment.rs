//! One segment: header, records, index, table, trailer, and that they say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::super::disk::Disk as _;
use super::super::footer::{Entry, METADATA};
use super::super::format::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKey};
use super::super::index::{Segment, Wanted, entry_of};
use super::super::letters::{self, tenant_of_letters};
use super::super::record::{self, Header, Kind};
use super::super::recovery::{RecoverError, load_sealed};
use super::super::scan::{ScanEnd, scan};
use super::files::ReadOnly;
use super::{Checked, Owners};
use crate::base::{Sequence, TenantId};

/// What a scan finds intact.
#[derive(Default)]
struct Found {
    entries: BTreeMap<TenantId, Vec<Entry>>,
    unreadable: u64,
}

pub(super) fn check(
    checked: &mut Checked,
    owners: &mut Owners,
    disk: &ReadOnly,
    (key, header, log_id, is_newest): (SegmentKey, Option<&SegmentHeader>, Option<u64>, bool),
) -> Result<(), RecoverError> {
    let name = format!("log/{}", key.name());
    let failed = |error| RecoverError::Io("reading", key.name(), error);
    let file = Arc::new(disk.open(&key.name()).map_err(failed)?);
    let length = disk.length(&file).map_err(failed)?;
    checked.segments += 1;
    checked.bytes += length;
    match header {
        None => checked.damage(&name, "its header is damaged; its name says the same, so nothing is lost"),
        Some(header) if Some(header.log_id) != log_id => {
            checked.damage(&name, format!("it is of another log, {:016x}", header.log_id));
        }
        Some(_) => {}
    }
    let sealed = load_sealed(disk, key, &file, length);
    let to = sealed.as_ref().map_or(length, |segment| segment.data_end);
    let mut found = Found::default();
    let end = scan((disk, &file, key), (SEGMENT_HEADER_BYTES, to), |offset, header, payload| {
        take(checked, owners, (&mut found, &name), (offset, header, payload));
    })
    .map_err(failed)?;
    if found.unreadable > 0 {
        checked.damage(&name, format!("{} records are intact but say nothing that can be read", found.unreadable));
    }
    match sealed {
        Some(segment) => {
            checked.sealed += 1;
            check_index(checked, disk, (&segment, &name), &found, end);
        }
        None => check_open(checked, &name, is_newest, end),
    }
    Ok(())
}

fn take(
    checked: &mut Checked,
    owners: &mut Owners,
    (found, name): (&mut Found, &str),
    (offset, header, payload): (u64, &Header, &[u8]),
) {
    owners.highest = owners.highest.max(header.sequence.0);
    if let Some((tenant, entry)) = entry_of(offset, header) {
        found.entries.entry(tenant).or_default().push(entry);
    }
    let tenant = TenantId(header.tenant);
    let readable = match Kind::from_number(header.kind) {
        Some(Kind::Data) => {
            checked.records += 1;
            checked.items += u64::from(header.items);
            owners.data.entry(tenant).or_insert_with(|| (0, name.to_owned())).0 += 1;
            true
        }
        Some(Kind::DeadLetter) => {
            checked.dead_letters += 1;
            record::take_letter(header, &Bytes::copy_from_slice(payload)).is_some()
        }
        Some(Kind::Tenant) => {
            owners.named.insert(tenant);
            record::take_tenant(payload).is_some()
        }
        // Its name went with it; so did whatever it had.
        Some(Kind::Forgotten) => {
            owners.named.insert(tenant);
            true
        }
        Some(Kind::Cursors) => record::take_cursors(payload).is_some(),
        Some(Kind::Letters) => letters::take_states(payload).is_some(),
        Some(Kind::Roster) => record::take_roster(payload).is_some(),
        Some(Kind::Sources) => payload.len().is_multiple_of(8),
        // Of a later release: stepped over.
        None => true,
    };
    found.unreadable += u64::from(!readable);
}

fn check_open(checked: &mut Checked, name: &str, is_newest: bool, end: ScanEnd) {
    if end.damaged > 0 {
        checked.damage(name, format!("{} records are damaged: they are lost", end.damaged));
    }
    match is_newest {
        true => {
            checked.note(name, "not closed: the gateway was killed, or the machine. The next start reads and closes it")
        }
        false => checked.damage(
            name,
            "its index is damaged, or could not be written on a full disk; its records are found by reading all of it",
        ),
    }
}

/// Every entry of the index has its record, every record its entry, and the ranges say what the entries say.
fn check_index(
    checked: &mut Checked,
    disk: &ReadOnly,
    (segment, name): (&Segment<ReadOnly>, &str),
    found: &Found,
    end: ScanEnd,
) {
    let (mut lost, mut indexed) = (0, BTreeSet::new());
    let mut broken = false;
    for range in &segment.ranges {
        indexed.insert(range.tenant);
        let wanted = Wanted { tenant: range.tenant, after: Sequence::ZERO, bytes_max: usize::MAX };
        let Some(entries) = segment.entries_from_disk(disk, range, wanted) else {
            broken = true;
            continue;
        };
        let sum = super::super::footer::Range::of(range.tenant, &entries);
        let agrees = sum.is_some_and(|sum| {
            (sum.count, sum.first, sum.last, sum.items, sum.bytes)
                == (range.count, range.first, range.last, range.items, range.bytes)
        });
        let ascending = entries.is_sorted_by(|one, next| one.sequence < next.sequence);
        broken |= !agrees || !ascending;
        let intact: BTreeSet<u32> =
            found.entries.get(&range.tenant).into_iter().flatten().map(|entry| entry.offset).collect();
        for entry in entries.iter().filter(|entry| !intact.contains(&entry.offset)) {
            lost += 1;
            let whose = match (range.tenant, tenant_of_letters(range.tenant)) {
                (METADATA, _) => "of the log itself".to_owned(),
                (_, Some(tenant)) => format!("a dead letter of tenant {}", tenant.0),
                (tenant, None) => format!("of tenant {}", tenant.0),
            };
            let items =
                entry.items().map_or(String::new(), |(signal, items)| format!(", {items} {}", signal.items_name()));
            let what =
                format!("the record at {} is damaged: {whose}, sequence {}{items}", entry.offset, entry.sequence.0);
            checked.damage(name, what);
        }
        broken |= intact.len() > entries.len();
    }
    broken |= found.entries.keys().any(|tenant| !indexed.contains(tenant));
    if broken {
        checked.damage(name, "its index is damaged; its records are found by reading all of it");
    }
    if lost == 0 && end.damaged > 0 {
        checked.damage(name, format!("{} places between its records are damaged", end.damaged));
    }
}
