//! The bytes of format version 1, as released. If one of these fails, a release could not read what its predecessor wrote.
//!
//! Until version 1 is released its bytes may change: `PILLION_QUEUE_GOLDEN=write` with these tests writes the files anew.

use super::letter;
use super::world::{Crash, State, World};
use crate::base::{Sequence, TenantId};
use crate::queue::Reply;
use crate::queue::disk::Disk;
use crate::queue::footer::METADATA;
use crate::queue::format::{FoundHeader, RELOCATED, SegmentHeader, SegmentKey};
use crate::queue::group::Request;
use crate::queue::record::Header;
use crate::queue::scan::scan;

const NAME: &str = "0000000000000002-00000001-fad25d9a.seg";
const SEALED: &[u8] = include_bytes!("../golden/0000000000000002-00000001-fad25d9a.seg");
/// The same segment before it was sealed, with the room that was reserved for more.
const OPEN: &[u8] = include_bytes!("../golden/open.seg");
/// A segment of class 1.
const COPY: &[u8] = include_bytes!("../golden/relocated.seg");

/// Scenario: the format file of version 1, of log 77.
/// Guarantees: today's release writes the same bytes.
#[test]
fn version_1_of_the_format_file() {
    assert_eq!(crate::queue::directory::format_text(1, 77), include_str!("../golden/format"));
}

/// Scenario: a segment of version 1 with a tenant, two records of it, a dead letter and its cursors: sealed, sealed and cut, and open as
/// a crash leaves it.
/// Guarantees: all of it is read, by footer and by scan alike.
#[test]
fn version_1_is_read() {
    // Without its last byte it has no trailer, and is scanned.
    for bytes in [SEALED, &SEALED[..SEALED.len() - 1], OPEN] {
        let mut world = World::new(3);
        world.disk.put(NAME, bytes.to_vec());
        let (tenant, known) = golden_records(&mut world);
        world.tenants.push(tenant);
        world.known = known;
        let sent = super::cursors_at(TenantId(1), Sequence(1 << 40 | 5));
        world.note_sent(sent);
        world.restart(Crash::Kill, false);
        let found = &world.last_recovery.tenants;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].record, super::tenant_record("shop/cart"));
        assert_eq!(
            found[0].cursors.iter().map(|cursor| cursor.acknowledged).collect::<Vec<_>>(),
            [Sequence(1 << 40 | 5); 4]
        );
        assert_eq!(world.read(tenant, Sequence::ZERO).len(), 2);
        assert_eq!(world.damaged(), 0);
        assert_eq!(world.log.tenants.find(tenant).map(|tenant| tenant.letters.iter().count()), Some(1));
    }
}

fn golden_records(world: &mut World) -> (TenantId, std::collections::BTreeMap<u64, super::world::Known>) {
    let mut source = golden_writer();
    let tenant = source.tenants[0];
    source.note_positions();
    world.positions = source.positions.clone();
    (tenant, source.known)
}

/// What wrote the golden file.
fn golden_writer() -> World {
    let mut world = open_writer();
    world.log.close(5).expect("it closes");
    world
}

/// The same, not closed.
fn open_writer() -> World {
    let mut world = World::new(3);
    let tenant = world.register("shop/cart").expect("there is room");
    let first = world.append(tenant, true, &[5]).expect("there is room");
    world.append(tenant, true, &[1000]).expect("there is room");
    let letter = letter(tenant, first, vec![9; 20]);
    world.step(vec![Request::DeadLetter(letter, Reply { mailbox: Default::default(), ticket: 0 })]);
    world.acknowledge(tenant, first);
    world
}

/// What wrote the copy: the world, and the copy's key.
fn copy_writer() -> (World, TenantId, SegmentKey) {
    let (mut world, dead, _) = super::space::due(2);
    super::space::relocate(&mut world);
    let is_copy = |name: &String| {
        let (key, is_spare) = SegmentKey::parse(name)?;
        let found = SegmentHeader::decode(world.disk.bytes(name).first_chunk()?, key);
        matches!(found, FoundHeader::Valid(header) if !is_spare && header.class == RELOCATED).then_some(key)
    };
    let key = world.disk.list().expect("it lists").iter().find_map(is_copy).expect("something was relocated");
    (world, dead, key)
}

/// Scenario: a segment of class 1 of version 1, as a relocation has left it, alone.
/// Guarantees: what was live in its sources is read, under its tenant's name; today's relocation writes the same bytes.
#[test]
fn a_copy_of_version_1_is_read_and_is_what_is_written() {
    let (mut source, dead, key) = copy_writer();
    if is_written_anew("relocated.seg", &source.disk.bytes(&key.name())) {
        return;
    }
    assert_eq!(source.disk.bytes(&key.name()), COPY);
    let expected: Vec<_> = source
        .index
        .sealed()
        .iter()
        .filter(|segment| segment.key == key)
        .filter_map(|segment| segment.range(dead))
        .map(|range| range.count as usize)
        .collect();
    source.note_positions();
    let mut world = World::new(3);
    world.disk.put(&key.name(), COPY.to_vec());
    world.tenants.push(dead);
    world.known = source.known;
    world.known.values_mut().for_each(|known| known.state = State::Unknown);
    world.restart(Crash::Kill, false);
    let found = world.last_recovery.tenants.iter().find(|tenant| tenant.id == dead).expect("it is named");
    assert_eq!(found.record, super::tenant_record("shop/dead"));
    assert_eq!(world.read(dead, Sequence::ZERO).len(), expected[0]);
    assert!(expected[0] > 3 && world.damaged() == 0);
}

/// Whether the files are to be written anew, and then does so.
fn is_written_anew(name: &str, bytes: &[u8]) -> bool {
    let anew = std::env::var("PILLION_QUEUE_GOLDEN").is_ok_and(|what| what == "write");
    if anew {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/queue/golden").join(name);
        std::fs::write(path, bytes).expect("the source tree can be written");
    }
    anew
}

/// Scenario: the records of the golden file are read and written again under the same key.
/// Guarantees: today's writer makes the same bytes, so today's files are what the next release finds as version 1.
#[test]
fn version_1_is_what_is_written() {
    let (key, _) = SegmentKey::parse(NAME).expect("a canonical name");
    let world = golden_writer();
    let open = open_writer().disk.bytes(NAME);
    if is_written_anew(NAME, &world.disk.bytes(NAME)) && is_written_anew("open.seg", &open) {
        return;
    }
    assert_eq!(open, OPEN, "to the end of what was reserved");
    world.disk.put(NAME, SEALED.to_vec());
    let file = world.disk.open(NAME).expect("it is there");
    let mut records = 0;
    scan((&*world.disk, &file, key), (64, SEALED.len() as u64), |offset, header: &Header, payload| {
        let at = usize::try_from(offset).expect("a small file");
        assert_eq!(header.encode(key.seed().at(offset)), SEALED[at..at + 48]);
        assert_eq!(payload, &SEALED[at + 48..at + 48 + payload.len()]);
        records += 1;
    })
    .expect("it scans");
    assert_eq!(records, 9, "two rosters, a tenant twice, two records, a dead letter, cursors, the time of the end");
    // Salts are random, so names and checksums differ from run to run of another generator; lengths and layout do not.
    let written = world.index.sealed().into_iter().next().expect("it was sealed");
    assert_eq!(written.length, SEALED.len() as u64);
    assert!(written.range(METADATA).is_some());
}
