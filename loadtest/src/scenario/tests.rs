use fastrand::Rng;

use super::*;
use crate::profile::Profile;
use crate::schedule::Schedule;
use crate::template::Plan;

const RIGHT: &str = "about = \"x\"\npods = 2\nseconds = 1.0\nrequests_per_second = 5.0\nitems = {traces = 1}\n";

/// Scenario: every committed file.
/// Guarantees: it can be run, and says what it is for.
#[test]
fn committed_scenarios_can_be_run() {
    for (name, _) in COMMITTED {
        let scenario = Scenario::load(name).unwrap();
        assert!(!scenario.about.is_empty(), "{name}");
    }
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios")).unwrap().count();
    assert_eq!(files, COMMITTED.len(), "each file is in the list");
}

/// Scenario: files with a mistake that a person would make, and with numbers that are none.
/// Guarantees: each is refused before anything is started, and the message names the key.
#[test]
fn wrong_scenarios_are_refused_by_name() {
    Scenario::parse(RIGHT).unwrap();
    for (key, line) in [
        ("noisy", "noisy = {pods = 2, factor = 2.0}"),
        ("shares", "shares = {logs = 1.0}"),
        ("shares", "shares = {traces = inf}"),
        ("events", "events = [{at = 2.0, do = \"backend-up\"}]"),
        ("events", "events = [{at = nan, do = \"backend-up\"}]"),
        ("phases", "phases = [{at = 0.5, factor = 1.0}, {at = 0.2, factor = 1.0}]"),
        ("phases", "phases = [{at = nan, factor = 1.0}]"),
        ("disk_mib", "events = [{at = 0.5, do = \"disk-full\"}]"),
        ("timeout", "timeout = 0.0"),
        ("timeout", "timeout = 1e300"),
        ("warmup", "warmup = 1e300"),
        ("connections", "connections = 1000000000"),
        ("outstanding", "outstanding = 1000000000"),
        ("outstandin", "outstandin = 3"),
    ] {
        let error = format!("{:#}", Scenario::parse(&format!("{RIGHT}{line}\n")).unwrap_err());
        assert!(error.contains(key), "{key}: {error}");
    }
    for (key, from, to) in [
        ("items", "traces = 1", "traces = 9000"),
        ("requests_per_second", "5.0", "1e308"),
        ("seconds", "seconds = 1.0", "seconds = inf"),
        ("seconds", "second = 5.0", "second = 5000.0\nwarmup = 80000.0"),
        ("outstanding", "traces = 1", "traces = 8192}\noutstanding = 10000\nnoisy = {pods = 1, factor = 1.0"),
    ] {
        let error = format!("{:#}", Scenario::parse(&RIGHT.replace(from, to)).unwrap_err());
        assert!(error.contains(key), "{key}: {error}");
    }
}

/// Scenario: the file is endless.
/// Guarantees: it is refused after as much of it as a scenario may have.
#[test]
fn a_file_without_an_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    std::fs::write(&file, [RIGHT.as_bytes(), b"#", &[b' '; FILE_BYTES_MAX]].concat()).unwrap();
    let error = format!("{:#}", Scenario::load(file.to_str().unwrap()).unwrap_err());
    assert!(error.contains("KiB"), "{error}");
}

/// Scenario: requests of as many items as may be, of every profile and signal.
/// Guarantees: they are as small as the bound on what is under way takes them to be.
#[test]
fn items_are_smaller_than_they_are_taken_to_be() {
    for profile in [SHOP, CARDINAL] {
        for items in [1, 10, 2_048] {
            let plan = Plan::new(&Profile::parse(profile).unwrap(), 7, 1, [items; 3]).unwrap();
            for template in crate::identity::Signal::ALL.iter().flat_map(|signal| plan.templates(*signal)) {
                assert!(template.len() <= (items + 1) * bounds::ITEM_BYTES, "{items}: {}", template.len());
            }
        }
    }
}

/// A number that a person, a program or an attacker might write.
fn number(rng: &mut Rng) -> f64 {
    let edges = [0.0, -0.0, 1.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE, 1e300];
    match rng.u8(..4) {
        0 => edges[rng.usize(..edges.len())],
        1 if rng.bool() => f64::from_bits(rng.u64(..)),
        1 => f64::NAN,
        2 => 10f64.powf(rng.f64() * 12.0 - 6.0),
        _ => rng.f64() * 100.0,
    }
}

fn count(rng: &mut Rng) -> usize {
    let edges = [0, 1, 4_096, 4_097, 8_192, 8_193, usize::MAX, usize::MAX / 2];
    match rng.u8(..4) {
        0 => edges[rng.usize(..edges.len())],
        1 => rng.usize(..),
        _ => rng.usize(..100),
    }
}

fn by_chance(rng: &mut Rng) -> Scenario {
    // Mostly right: else no file would get past the first check.
    let right = Scenario::parse(RIGHT).unwrap();
    let mut scenario = right.clone();
    for _ in 0..rng.usize(1..4) {
        match rng.u8(..13) {
            0 => scenario.pods = count(rng),
            1 => scenario.seconds = number(rng),
            2 => scenario.warmup = number(rng),
            3 => scenario.requests_per_second = number(rng),
            4 => scenario.items = Items { traces: count(rng), metrics: count(rng), logs: count(rng) },
            5 => scenario.shares = Some(Shares { traces: number(rng), metrics: number(rng), logs: number(rng) }),
            6 => scenario.connections = count(rng),
            7 => scenario.outstanding = count(rng),
            8 => scenario.timeout = number(rng),
            9 => {
                scenario.phases = (0..rng.usize(..3)).map(|_| Phase { at: number(rng), factor: number(rng) }).collect()
            }
            10 => scenario.noisy = Some(Noisy { pods: count(rng), factor: number(rng) }),
            11 => {
                let event = |at| Event { at, what: Deed::BackendUp };
                scenario.events = (0..rng.usize(..4)).map(|_| event(number(rng))).collect();
            }
            _ => scenario.disk_mib = Some(rng.u64(..)),
        }
    }
    scenario
}

/// Scenario: twenty thousand scenarios with numbers by chance in every field.
/// Guarantees: each is refused in words or can be prepared for a run: no panic, no time that never comes, no account too small.
#[test]
fn no_number_makes_more_than_a_refusal() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let mut prepared = 0;
    for _ in 0..20_000 {
        let scenario = by_chance(&mut rng);
        if let Err(error) = scenario.check() {
            assert!(error.to_string().contains(':'), "{error}");
            continue;
        }
        prepared += 1;
        assert!(scenario.bounds().timeout > Duration::ZERO && scenario.items_per_request() >= 0.0, "{scenario:?}");
        assert!(!scenario.shape().contains("NaN") && scenario.transport().connections > 0, "{scenario:?}");
        for rates in [scenario.rates(), scenario.warmup_rates()] {
            assert!(rates.expected().is_finite(), "{scenario:?}");
            let end = rates.duration * 1e9;
            assert!(Schedule::new(rates, 1).take(50).all(|due| due.at as f64 <= end), "{scenario:?}");
        }
    }
    assert!(prepared > 200, "only {prepared} were right");
}
