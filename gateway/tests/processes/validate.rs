//! `pillion validate` as a script calls it.

use std::fs;

use crate::process::run;

const BAD: &str = include_str!("../../src/config/testdata/bad.yaml");
const ERRORS: &str = include_str!("../../src/config/testdata/bad.errors");

/// Scenario: a file with every kind of mistake, as text and as JSON.
/// Guarantees: the status is 3; every mistake of the golden list is there in both, text on stderr and JSON on stdout, without
/// colour where there is no terminal.
#[test]
fn every_mistake_is_printed() {
    let dir = tempfile::tempdir().expect("writable");
    fs::write(dir.path().join("bad.yaml"), BAD).expect("writable");
    let (code, stdout, stderr) = run(dir.path(), &["validate", "bad.yaml"]);
    assert_eq!((code, stdout.as_str()), (Some(3), ""));
    assert!(!stderr.contains('\x1b'), "{stderr}");
    let shown: Vec<String> = stderr
        .replace("\n       ", "; ")
        .lines()
        .filter_map(|line| line.strip_prefix("error: ").map(str::to_owned))
        .collect();
    assert_eq!(shown, ERRORS.lines().collect::<Vec<_>>());

    let (code, stdout, stderr) = run(dir.path(), &["validate", "-o", "json", "bad.yaml"]);
    assert_eq!((code, stderr.as_str()), (Some(3), ""));
    let value: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(value["errors"].as_array().map(Vec::len), Some(ERRORS.lines().count()));
}

/// Scenario: a valid file, and one that is not there.
/// Guarantees: status 0 with a line for people, status 3 with the reason.
#[test]
fn a_valid_file_is_called_valid() {
    let dir = tempfile::tempdir().expect("writable");
    let example = include_str!("../../src/config/testdata/example.yaml");
    fs::write(dir.path().join("good.yaml"), example).expect("writable");
    let expected = "good.yaml is valid: 1 tenant, 1 destination\n".to_owned();
    assert_eq!(run(dir.path(), &["validate", "good.yaml"]), (Some(0), expected, String::new()));
    let (code, _, stderr) = run(dir.path(), &["validate", "missing.yaml"]);
    assert_eq!(
        (code, stderr.as_str()),
        (Some(3), "error: missing.yaml: there is no such file\n       check the path\n1 mistake\n")
    );
}
