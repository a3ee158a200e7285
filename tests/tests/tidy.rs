//! The shape of the code, kept by a test: which module may name which, how long a file may grow, and that what documents and
//! comments refer to is there.
//!
//! The lists of exceptions may only shrink: an entry that is no longer needed fails as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Module of the gateway -> modules that it may name. A new edge is a deliberate line here.
const EDGES: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("sys", &[]),
    ("sockets", &["sys"]),
    ("wire", &["base"]),
    // For tools; not on the way of a request.
    ("readable", &["base"]),
    ("config", &["base"]),
    ("telemetry", &[]),
    ("pipeline", &["base", "wire"]),
    ("queue", &["base"]),
    ("sink", &["base", "wire"]),
    ("tenant", &["base", "config", "pipeline", "queue"]),
    ("intake", &["base", "tenant"]),
    ("export", &["base", "config", "queue", "sink", "wire"]),
    ("lifecycle", &["base", "config", "sockets", "sys", "tenant"]),
    ("volumes", &["base", "config", "sys"]),
    // A process of its own, beside the gateway.
    ("csi", &["sockets", "sys"]),
    ("admin", &["base", "export", "lifecycle", "queue", "sink", "sockets", "sys", "tenant", "volumes"]),
    ("inject", &[]),
    // The composition root: only it names everything.
    (
        "app",
        &[
            "admin",
            "base",
            "config",
            "csi",
            "export",
            "inject",
            "intake",
            "lifecycle",
            "queue",
            "readable",
            "sink",
            "sys",
            "telemetry",
            "tenant",
            "volumes",
        ],
    ),
];

/// Code lines of a file: no blank lines, no comments, nothing after `#[cfg(test)]`.
const CODE_LINES_MAX: usize = 500;

/// Files over the limit, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// Files that may contain `unsafe`: one small module a crate.
const UNSAFE_MODULES: &[&str] = &["bench/src/counted/sys.rs", "gateway/src/sys", "shim/src/sys", "tests/src/sys.rs"];

/// Scenario: somebody imports across a layer.
/// Guarantees: the data plane never names the control plane, siblings never name each other, leaves name nothing.
#[test]
fn modules_name_only_what_they_may() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for file in rust_files("gateway/src") {
        let Some(from) = module_of(&file) else { continue };
        let Some((_, allowed)) = EDGES.iter().find(|(module, _)| *module == from) else {
            wrong.push(format!("{}: module {from} has no row in EDGES", file.display()));
            continue;
        };
        for to in named_modules(&code_of(&file)) {
            if to == from {
                continue;
            }
            if allowed.contains(&to.as_str()) {
                used.insert((from.clone(), to));
            } else {
                wrong.push(format!("{}: {from} must not name {to}", file.display()));
            }
        }
    }
    for (from, allowed) in EDGES {
        for to in *allowed {
            if !used.contains(&((*from).to_owned(), (*to).to_owned())) {
                wrong.push(format!("EDGES: nothing in {from} names {to} any more: remove the edge"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Scenario: a file grows line by line.
/// Guarantees: it is split before it needs scrolling maps; an exception that is no longer one is removed.
#[test]
fn files_stay_readable() {
    let mut wrong = Vec::new();
    for file in
        ["gateway/src", "shim/src", "proto/src", "loadtest/src", "bench", "tests/src"].into_iter().flat_map(rust_files)
    {
        let name = relative(&file);
        let lines = code_of(&file).lines().count();
        let excused = LONG_FILES.iter().any(|(long, _)| *long == name);
        match (lines > CODE_LINES_MAX, excused) {
            (true, false) => wrong.push(format!("{name}: {lines} code lines, at most {CODE_LINES_MAX}")),
            (false, true) => wrong.push(format!("{name}: {lines} code lines: remove it from LONG_FILES")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Scenario: somebody reaches for `unsafe`, or silences a lint without a word.
/// Guarantees: both stay where a reviewer looks for them.
#[test]
fn unsafe_and_silence_stay_in_their_place() {
    let mut wrong = Vec::new();
    for file in ["gateway", "shim", "proto", "loadtest", "bench", "tests"].into_iter().flat_map(rust_files) {
        let name = relative(&file);
        if name == "tests/tests/tidy.rs" {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a listed file can be read");
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            let is_unsafe =
                ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|word| line.contains(word));
            if is_unsafe && !UNSAFE_MODULES.iter().any(|module| name.starts_with(module)) {
                wrong.push(format!("{name}:{}: unsafe outside sys", number + 1));
            }
            for word in ["#[allow(", "#![allow(", "#[ignore", "thread::sleep(", "time::sleep(Duration::from"] {
                if line.contains(word) && !is_excused_sleep(&name, word) {
                    wrong.push(format!("{name}:{}: {word}…", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Scenario: code or a test that a mutant speaks of is changed, moved or renamed.
/// Guarantees: each mutant of the queue still applies, in exactly one place, and its test is there. `tests/mutants/run` runs them.
#[test]
fn every_mutant_still_applies() {
    let looked_at = std::process::Command::new(root().join("tests/mutants/run")).arg("--check").output();
    let looked_at = looked_at.expect("bash and perl are there");
    let said = [looked_at.stdout, looked_at.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(looked_at.status.success(), "{said}");
}

/// Scenario: gateway or load test begins to use a library, or a feature of one, that the other builds without.
/// Guarantees: what both are made of has the same features in both, so the load test's first comparison, which builds both, builds
/// it once. All but our own protocol, which is small.
#[test]
fn what_gateway_and_load_test_share_is_built_once() {
    let [gateway, loadtest] = ["pillion-gateway", "pillion-loadtest"].map(features);
    let both = gateway.iter().filter_map(|(name, features)| Some((name, features, loadtest.get(name)?)));
    let other = both.filter(|(name, gateway, loadtest)| gateway != loadtest && !name.starts_with("pillion-proto "));
    let wrong: Vec<_> =
        other.map(|(name, one, other)| format!("{name}: gateway {one:?}, load test {other:?}")).collect();
    assert!(
        wrong.is_empty(),
        "name these with the features of both in the workspace's Cargo.toml, and in the package that lacks them:\n{}",
        wrong.join("\n")
    );
}

/// What a package is made of: names and versions, each with its features.
fn features(package: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut tree = std::process::Command::new(env!("CARGO"));
    tree.args(["tree", "--locked", "--offline", "--edges", "normal,build", "--prefix", "none", "--format", "{p};{f}"]);
    let output = tree.args(["--package", package]).current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let (name, features) = line.split_once(';').expect("as the format says");
        found.entry(name.to_owned()).or_default().insert(features.trim_end_matches(" (*)").to_owned());
    }
    found
}

/// Scenario: a test that a document gives as a proof is renamed, or a comment refers to a document that is not here.
/// Guarantees: every `file.rs::test` in docs/ names a test, every document that a comment names is in this repository, and so
/// is every clause and row of docs/ that is named with its document.
#[test]
fn references_lead_somewhere() {
    let document = |name: &str| fs::read_to_string(root().join(name)).expect("it is in the repository");
    let mut wrong = Vec::new();
    let mut proofs = 0;
    let numbered = ["docs/otlp.md clause", "docs/threats.md row"].map(|words| {
        let name = words.split(' ').next().expect("the path comes first");
        let text = document(name);
        for reference in text.split('`').filter(|quoted| quoted.contains(".rs::")) {
            proofs += 1;
            if !is_test(reference) {
                wrong.push(format!("{name}: no such test: {reference}"));
            }
        }
        (words, text)
    });
    assert!(proofs > 100, "the documents name their proofs: {proofs}");
    for folder in ["proto", "shim", "gateway", "loadtest", "bench", "tests", "fuzz"] {
        for file in rust_files(folder) {
            let text = fs::read_to_string(&file).expect("a listed file can be read");
            for comment in text.lines().filter_map(|line| line.trim_start().strip_prefix("//")) {
                let is_part = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
                let words = comment.split(|c| !is_part(c)).map(|word| word.trim_end_matches('.'));
                let lost = words.filter(|word| word.ends_with(".md") && !root().join(word).is_file());
                wrong.extend(lost.map(|word| format!("{}: no such document: {word}", relative(&file))));
                for (words, text) in &numbered {
                    let Some((_, rest)) = comment.split_once(words) else { continue };
                    let number = rest.trim_start_matches(['s', ' ']).chars().take_while(char::is_ascii_digit);
                    let number = number.collect::<String>();
                    if !text.contains(&format!("\n| {number} | ")) {
                        wrong.push(format!("{}: no such number: {words} {number}", relative(&file)));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether `file.rs::name` is a test; files are below the root or below gateway/src.
fn is_test(reference: &str) -> bool {
    let Some((file, name)) = reference.split_once("::") else { return false };
    let texts = [root().join(file), root().join("gateway/src").join(file)].map(fs::read_to_string);
    texts.into_iter().flatten().any(|text| {
        let Some((before, _)) = text.split_once(&format!("fn {name}(")) else { return false };
        let attributes = before.rsplit_once("\n\n").map_or(before, |(_, last)| last);
        attributes.contains("#[test]") || attributes.contains("#[tokio::test")
    })
}

/// Waiting for a length of time is the job of a backoff, and of the one place that asks a cluster until it answers.
fn is_excused_sleep(file: &str, word: &str) -> bool {
    const SLEEPERS: &[&str] = &["gateway/src/app/supervisor.rs", "tests/src/e2e/wait.rs"];
    word.contains("sleep") && SLEEPERS.contains(&file)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace holds this package").to_owned()
}

fn relative(file: &Path) -> String {
    file.strip_prefix(root()).expect("listed below the root").display().to_string()
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut folders = vec![root().join(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a listed folder can be read") {
            let path = entry.expect("a listed entry").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The top-level module of a gateway file; none for lib.rs and main.rs.
fn module_of(file: &Path) -> Option<String> {
    let name = relative(file);
    let first = name.strip_prefix("gateway/src/")?.split('/').next()?.trim_end_matches(".rs").to_owned();
    (first != "lib" && first != "main").then_some(first)
}

/// Lines of code: tests (to the end of the file, or files named tests.rs and sim*.rs) and comments left out.
fn code_of(file: &Path) -> String {
    let name = relative(file);
    if name.ends_with("tests.rs") || name.contains("/tests/") {
        return String::new();
    }
    let text = fs::read_to_string(file).expect("a listed file can be read");
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    code.lines().filter(is_code).map(|line| format!("{line}\n")).collect()
}

/// Every `x` of `crate::x` and of the first level of `use crate::{x, y::…}`.
fn named_modules(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.extend(identifier(rest)),
            Some(list) => {
                let mut depth = 1;
                let mut start = true;
                for (offset, character) in list.char_indices() {
                    match character {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 1 => start = true,
                        c if start && depth == 1 && c.is_ascii_lowercase() => {
                            found.extend(identifier(&list[offset..]));
                            start = false;
                        }
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
        }
    }
    found
}

fn identifier(text: &str) -> Option<String> {
    let name: String = text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    name.starts_with(|c: char| c.is_ascii_lowercase()).then_some(name)
}
