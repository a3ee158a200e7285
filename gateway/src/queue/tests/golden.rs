//! The bytes of format version 1, as released. If one of these fails, a release could not read what its predecessor wrote.
//!
//! Until version 1 is released its bytes may change: `PILLION_QUEUE_GOLDEN=write` with the second test writes the file anew.

use super::letter;
use super::world::{Crash, World};
use crate::base::{Sequence, TenantId};
use crate::queue::Reply;
use crate::queue::disk::Disk;
use crate::queue::footer::METADATA;
use crate::queue::format::SegmentKey;
use crate::queue::group::Request;
use crate::queue::record::Header;
use crate::queue::scan::scan;

const NAME: &str = "0000000000000002-00000001-fad25d9a.seg";
const SEALED: &[u8] = include_bytes!("../golden/0000000000000002-00000001-fad25d9a.seg");

/// Scenario: the format file of version 1, of log 77.
/// Guarantees: today's release writes the same bytes.
#[test]
fn version_1_of_the_format_file() {
    assert_eq!(crate::queue::directory::format_text(1, 77), include_str!("../golden/format"));
}

/// Scenario: a sealed segment of version 1 with a tenant, two records of it, a dead letter and its cursors.
/// Guarantees: all of it is read, by footer and by scan alike.
#[test]
fn version_1_is_read() {
    for cut in [0, 1] {
        let mut world = World::new(3);
        // Without its last byte it has no trailer, and is scanned.
        world.disk.put(NAME, SEALED[..SEALED.len() - cut].to_vec());
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
    let mut world = World::new(3);
    let tenant = world.register("shop/cart").expect("there is room");
    let first = world.append(tenant, true, &[5]).expect("there is room");
    world.append(tenant, true, &[1000]).expect("there is room");
    let letter = letter(tenant, first, vec![9; 20]);
    world.step(vec![Request::DeadLetter(letter, Reply { mailbox: Default::default(), ticket: 0 })]);
    world.acknowledge(tenant, first);
    world.log.close(5).expect("it closes");
    world
}

/// Scenario: the records of the golden file are read and written again under the same key.
/// Guarantees: today's writer makes the same bytes, so today's files are what the next release finds as version 1.
#[test]
fn version_1_is_what_is_written() {
    let (key, _) = SegmentKey::parse(NAME).expect("a canonical name");
    let world = golden_writer();
    if std::env::var("PILLION_QUEUE_GOLDEN").is_ok_and(|what| what == "write") {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/queue/golden").join(NAME);
        return std::fs::write(path, world.disk.bytes(NAME)).expect("the source tree can be written");
    }
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
