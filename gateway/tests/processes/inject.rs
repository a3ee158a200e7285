//! `pillion inject` in a pipe, as scripts use it.

use std::fs;

use crate::process::run;

const SHOP: &str = include_str!("../../src/inject/manifest/testdata/shop.yaml");
const SHOP_INJECTED: &str = include_str!("../../src/inject/manifest/testdata/shop.injected.yaml");

/// Scenario: a stream in which one workload cannot have its shim.
/// Guarantees: stdout is the golden stream and nothing else; stderr has a line for each object with the next step; the status says
/// that somebody is without.
#[test]
fn manifests_go_through_a_pipe() {
    let dir = tempfile::tempdir().expect("writable");
    fs::write(dir.path().join("shop.yaml"), SHOP).expect("writable");
    let (code, stdout, stderr) = run(dir.path(), &["inject", "-f", "shop.yaml"]);
    assert_eq!((code, stdout.as_str()), (Some(9), SHOP_INJECTED));
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(
        lines,
        [
            "shop.yaml, document 1, Namespace shop: passed on as it is",
            "shop.yaml, document 2, Deployment shop/cart: injected",
            "shop.yaml, document 3, Service shop/cart: passed on as it is",
            "shop.yaml, document 4, Deployment shop/jaeger: skipped: a container declares a port that the shim would take \
             (jaeger: 4317); if it does not serve OTLP, choose other ports with pillion.dev/grpc-port and pillion.dev/http-port",
        ]
    );
    let (code, stdout, _) = run(dir.path(), &["inject", "-f", "shop.yaml", "-o", "json", "--image", "mirror/shim:2"]);
    let list: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    let shim = &list["items"][1]["spec"]["template"]["spec"]["initContainers"][0];
    assert_eq!((code, shim["image"].as_str()), (Some(9), Some("mirror/shim:2")));
}

/// Scenario: a good object before a broken one, a file that is not there, and an empty stdin.
/// Guarantees: a half of a stream is never printed; the message names file, line, document and the next step; nothing to do is no
/// failure.
#[test]
fn after_a_mistake_nothing_is_printed() {
    let dir = tempfile::tempdir().expect("writable");
    fs::write(dir.path().join("half.yaml"), format!("{SHOP}---\nkind: Job\nmetadata: {{name: j}}\n"))
        .expect("writable");
    let (code, stdout, stderr) = run(dir.path(), &["inject", "-f", "half.yaml"]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    let line = SHOP.lines().count() + 2;
    let wanted =
        format!("error: half.yaml: line {line}, document 5: Job j: spec is missing; a workload has a pod template");
    assert!(stderr.starts_with(&wanted), "{stderr}");

    let (code, _, stderr) = run(dir.path(), &["inject", "-f", "missing.yaml"]);
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("error: missing.yaml: ") && stderr.contains("with -f"), "{stderr}");
    assert_eq!(run(dir.path(), &["inject"]), (Some(0), String::new(), String::new()));
}
