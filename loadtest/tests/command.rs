//! The command itself, with a network namespace for each pod: needs user namespaces, `unshare` and `ip`.

use std::process::Command;

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pillion-loadtest");

/// Scenario: two rounds of a second without an agent, three pods, all signals, a file of one's own, results written.
/// Guarantees: every item of every pod goes from its own network to the backend and is accounted for; the files say so.
#[test]
fn a_users_scenario_runs_in_namespaces_without_root() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    let text = "about = \"mine\"\npods = 3\nseconds = 1.0\nwarmup = 0.2\nrequests_per_second = 40.0\n\
                items = {traces = 5, metrics = 3, logs = 2}\nprotocol = \"http\"\ncompression = \"zstd\"\nkeep = false\n";
    std::fs::write(&file, text).unwrap();
    let out = dir.path().join("out");

    let run = Command::new(PROGRAM)
        .args(["compare", "--rounds", "2", "--arms", "direct", "--seed", "5"])
        .arg("--out")
        .args([&out, &file])
        .output()
        .unwrap();

    let told = format!("{}\n{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{told}");
    assert!(told.contains("acknowledged items arrived once, unchanged, under their pod's name"), "{told}");
    assert!(told.contains("Nothing is said about full sidecars"), "{told}");
    let json: Value = serde_json::from_slice(&std::fs::read(out.join("comparison.json")).unwrap()).unwrap();
    let cells = json["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2, "{json:#}");
    for cell in cells {
        let (requests, account) = (&cell["requests"], &cell["account"]);
        assert!(requests["due"].as_u64().unwrap() > 50, "{cell:#}");
        assert_eq!(requests["due"], requests["acknowledged"], "{cell:#}");
        assert_eq!(requests["due"], requests["connections"], "a connection for each: {cell:#}");
        assert_eq!(account["sent"], account["delivered"], "{cell:#}");
    }
    assert_eq!(std::fs::read_to_string(out.join("runs.csv")).unwrap().lines().count(), 3);
}

/// Scenario: a comparison is made under assertions of which one does not hold, and told again under one that does.
/// Guarantees: the exit status is the gate's, what failed is named, and the arms' configurations are beside the report.
#[test]
fn an_assertion_that_does_not_hold_fails_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let (out, [broken, holds]) = (dir.path().join("out"), ["broken", "holds"].map(|name| dir.path().join(name)));
    let assertion = |limit: &str| format!("[[assert]]\nfigure = \"due\"\narm = \"floor\"\n{limit}\n");
    std::fs::write(&broken, assertion("at_least = 1.0") + &assertion("at_most = 1.0")).unwrap();
    std::fs::write(&holds, assertion("at_least = 1.0")).unwrap();
    let run = |arguments: &[&str], assertions: &std::path::Path| {
        let run = Command::new(PROGRAM).args(arguments).arg(&out).arg("--assert").arg(assertions).output().unwrap();
        (run.status.code(), format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr)))
    };
    let (code, told) = run(&["run", "quick", "--seconds", "0.5", "--arms", "floor", "--out"], &broken);
    assert_eq!(code, Some(4), "{told}");
    assert!(told.contains("HOLDS due of floor") && told.contains("BROKEN due of floor"), "{told}");
    assert!(out.join("arms/floor/cart-0000.log").is_file(), "{told}");
    let (code, told) = run(&["report"], &holds);
    assert_eq!(code, Some(0), "{told}");
}

/// Scenario: an arm whose program is not there, beside one that is.
/// Guarantees: the missing one is told, the other one is run.
#[test]
fn a_missing_arm_is_reported_and_never_left_out_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let run = Command::new(PROGRAM)
        .args(["run", "quick", "--seconds", "0.5", "--arms", "direct,rotel", "--cache"])
        .arg(dir.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{told}\n{}", String::from_utf8_lossy(&run.stderr));
    assert!(told.contains("MISSING rotel: rotel-agent is not there"), "{told}");
}

/// Scenario: an arm that ends before it is ready, beside one that runs, and alone.
/// Guarantees: the run that failed is told, and the exit status is that of a failure although the other arm was measured.
#[test]
fn a_run_that_fails_fails_the_command() {
    for arms in ["direct,pillion", "pillion"] {
        let run = Command::new(PROGRAM)
            .args(["run", "quick", "--seconds", "0.5", "--arms", arms, "--pillion", "/bin/false"])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&run.stdout);
        assert_eq!(run.status.code(), Some(1), "{told}\n{}", String::from_utf8_lossy(&run.stderr));
        assert!(told.contains("MISSING pillion: round 1: starting pillion"), "{told}");
    }
}

/// Scenario: a result in which an arm lost items, told again.
/// Guarantees: the exit status is that of the run itself.
#[test]
fn a_mistake_that_is_told_again_is_one_still() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let run = Command::new(PROGRAM)
        .args(["run", "quick", "--seconds", "0.5", "--arms", "direct", "--out"])
        .arg(&out)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let report = || Command::new(PROGRAM).arg("report").arg(&out).output().unwrap().status.code();
    assert_eq!(report(), Some(0));
    let file = out.join("comparison.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    json["cells"][0]["account"]["lost"] = 5.into();
    std::fs::write(&file, json.to_string()).unwrap();
    assert_eq!(report(), Some(3));
}

/// Scenario: whoever reads the output has gone before it comes, as in `| head`.
/// Guarantees: no panic, and the exit status of what was asked for.
#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let missing = ["baselines", "--only", "nothing", "--cache"];
    for (arguments, code) in [(&["list"][..], 0), (&["list", "nonsense"], 2), (&missing, 1)] {
        let ends = || {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            writer
        };
        let mut run = Command::new(PROGRAM);
        run.args(arguments).stdout(ends()).stderr(ends());
        if arguments.len() > 2 {
            run.arg(dir.path());
        }
        assert_eq!(run.status().unwrap().code(), Some(code), "{arguments:?}");
    }
}
