//! `verify` on directories that are well, and on such that are not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::files::{checkpoint, copy, fill, open};
use super::tenant_record;
use crate::base::Sequence;
use crate::queue::format::SEGMENT_HEADER_BYTES;
use crate::queue::{Checked, OpenError, Severity, verify};

/// Every file below a directory with its bytes.
fn bytes(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("it lists") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let bytes = std::fs::read(&path).expect("it reads");
                all.insert(path, bytes);
            }
        }
    }
    all
}

/// A directory with three segments and a tenant that has seen some of them.
fn filled(dir: &Path) {
    let (queue, _) = open(dir);
    let tenant = queue.register(&tenant_record("shop/cart")).expect("there is room").id;
    fill(&queue, tenant, 1_500);
    checkpoint(&queue, tenant, Sequence::ZERO);
    queue.close().expect("it closes");
}

fn damages(checked: &Checked) -> Vec<String> {
    let damage = checked.findings.iter().filter(|finding| finding.severity == Severity::Damage);
    damage.map(|finding| format!("{}: {}", finding.file, finding.what)).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("it reads");
    bytes[at] ^= 1;
    std::fs::write(path, bytes).expect("it writes");
}

/// Scenario: a directory after an orderly end, one of a process that was killed, one that is in use, and none.
/// Guarantees: the first two are intact, with every record counted, and no byte of them is changed; the others are refused.
#[test]
fn what_is_well_is_said_to_be_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let live = dir.path().join("live");
    let (queue, _) = open(&live);
    let tenant = queue.register(&tenant_record("shop/cart")).expect("there is room").id;
    fill(&queue, tenant, 1_500);
    assert!(matches!(verify(&live), Err(OpenError::Locked { .. })));
    let killed = dir.path().join("killed");
    copy(&live, &killed);
    queue.close().expect("it closes");

    for (dir, notes) in [(&live, 0), (&killed, 1)] {
        let before = bytes(dir);
        let checked = verify(dir).expect("nobody has it");
        assert_eq!(damages(&checked), Vec::<String>::new());
        assert!(checked.is_intact());
        assert_eq!((checked.records, checked.items, checked.tenants), (1_500, 3_000, 1));
        let open = checked.findings.iter().filter(|finding| finding.what.starts_with("not closed")).count();
        assert_eq!((open, checked.segments - checked.sealed), (notes, notes as u64), "{:?}", checked.findings);
        assert_eq!(bytes(dir), before);
    }
    assert!(matches!(verify(&dir.path().join("none")), Err(OpenError::Io { .. })));
}

/// Scenario: one bit is flipped: in each part of a sealed segment, in the format file, in sled; a file is cut; segments of
/// another directory are mixed in.
/// Guarantees: each is found and named with its file, and nothing else is said to be damaged.
#[test]
fn what_is_not_as_it_was_written_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = dir.path().join("good");
    filled(&good);
    let first = {
        let mut names: Vec<_> = std::fs::read_dir(good.join("log")).expect("it lists").flatten().collect();
        names.sort_by_key(std::fs::DirEntry::file_name);
        let seg = |entry: &&std::fs::DirEntry| entry.path().extension().is_some_and(|end| end == "seg");
        names.iter().find(seg).expect("a segment").file_name()
    };
    let segment = Path::new("log").join(&first);
    let length = std::fs::metadata(good.join(&segment)).expect("it is there").len() as usize;
    let header = SEGMENT_HEADER_BYTES as usize;
    let bytes_of = std::fs::read(good.join(&segment)).expect("it reads");
    let trailer = &bytes_of[length - 64..];
    let number = |at: usize| u64::from_le_bytes(trailer[at..at + 8].try_into().expect("eight")) as usize;
    let (table, data_end) = (number(16), number(24));
    for (number, (file, at, what)) in [
        (&*segment, 9, "its header is damaged"),
        (&*segment, header + 50, "the record at 64 is damaged: of the log itself"),
        (&*segment, data_end / 2, " is damaged: of tenant 1, sequence "),
        (&*segment, data_end + 30, "its index is damaged"),
        (&*segment, table + 8, "its index is damaged, or could not be written"),
        (&*segment, length - 20, "its index is damaged, or could not be written"),
        (Path::new("format"), 3, "missing or damaged"),
        (Path::new("meta/conf"), 3, "the next start makes it anew from the log"),
    ]
    .into_iter()
    .enumerate()
    {
        let bad = dir.path().join(number.to_string());
        copy(&good, &bad);
        flip(&bad.join(file), at);
        let checked = verify(&bad).expect("nobody has it");
        let damages = damages(&checked);
        assert!(!checked.is_intact() && damages.len() == 1 && damages[0].contains(what), "{what}: {damages:?}");
        let is_record = what.starts_with(" is damaged");
        assert_eq!(checked.records, 1_500 - u64::from(is_record), "{what}");
    }
    let other = dir.path().join("other");
    filled(&other);
    for name in std::fs::read_dir(good.join("log")).expect("it lists").flatten().map(|entry| entry.file_name()) {
        std::fs::copy(good.join("log").join(&name), other.join("log").join(&name)).expect("it copies");
    }
    let checked = verify(&other).expect("nobody has it");
    assert!(damages(&checked).iter().any(|damage| damage.contains("of another log")), "{:?}", checked.findings);
}
