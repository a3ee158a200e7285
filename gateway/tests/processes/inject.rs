//! `pillion inject` in a pipe, as scripts use it.

use std::fs;

use pillion_gateway::config::Config;
use pillion_gateway::inject::manifest;

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

/// Scenario: the manifests of deploy/yaml as `pillion inject` and the gateway read them.
/// Guarantees: the configuration in the ConfigMap is valid; nothing of Pillion's own is ever injected.
#[test]
fn the_manifests_are_what_the_gateway_understands() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/yaml");
    let config = fs::read_to_string(folder.join("20-config.yaml")).expect("it is in the repository");
    let map = manifest::to_json(&config).expect("valid YAML");
    let text = map["data"]["pillion.yaml"].as_str().expect("the configuration");
    let environment = |name: &str| (name == "NODE_NAME").then(|| "node-7".to_owned());
    let parsed = Config::parse(text, "pillion.yaml", &environment).expect("valid");
    assert_eq!((parsed.node.name.as_deref(), parsed.destinations.len()), (Some("node-7"), 1));

    let dir = tempfile::tempdir().expect("writable");
    for name in ["30-csi.yaml", "40-gateway.yaml"] {
        let path = folder.join(name);
        let labels = "pillion.dev/inject=enabled";
        let (code, stdout, stderr) =
            run(dir.path(), &["inject", "--namespace-labels", labels, "-f", path.to_str().expect("UTF-8")]);
        assert_eq!((code, stdout), (Some(0), fs::read_to_string(&path).expect("it is in the repository")));
        assert!(stderr.contains("pods of this namespace are left alone"), "{stderr}");
    }
}
