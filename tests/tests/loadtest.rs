//! The load test against the real gateway: a namespace for each pod, real shims, donated sockets.

use std::process::Command;

use serde_json::Value;

/// Scenario: one run of five pods without an agent and with each of Pillion's policies.
/// Guarantees: the harness starts the gateway and its shims, every acknowledged item arrives once, unchanged and attested as
/// its pod's, and CPU, memory and startup of all processes are there.
#[test]
fn the_gateway_is_an_arm_that_makes_no_mistake() {
    let dir = tempfile::tempdir().expect("the temporary directory is writable");
    let run = Command::new(env!("CARGO_BIN_EXE_pillion-compare"))
        .args(["run", "quick", "--seconds", "2", "--arms", "direct,pillion,pillion-durable", "--seed", "2"])
        .args(["--pillion", env!("CARGO_BIN_EXE_pillion-node"), "--out"])
        .arg(dir.path())
        .output()
        .expect("the command starts");

    let told = format!("{}\n{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{told}");
    let text = std::fs::read(dir.path().join("comparison.json")).expect("the comparison was written");
    let json: Value = serde_json::from_slice(&text).expect("the comparison is JSON");
    assert_eq!(json["missing"], serde_json::json!([]), "{told}");
    let cells = json["cells"].as_array().expect("a list");
    assert_eq!(cells.len(), 3, "{told}");
    for cell in cells {
        assert_eq!(cell["requests"]["due"], cell["requests"]["acknowledged"], "{cell:#}");
        assert_eq!(cell["account"]["sent"], cell["account"]["delivered"], "{cell:#}");
        if cell["arm"] != "direct" {
            let above_zero = |value: &Value| value.as_f64().is_some_and(|value| value > 0.0);
            let roles = &cell["cpu"]["roles"];
            assert!(above_zero(&roles["gateway"]) && roles["shim"].is_number(), "{cell:#}");
            assert!(above_zero(&cell["memory"]["idle"]["pss"]) && above_zero(&cell["startup_ms"]), "{cell:#}");
            let threads = cell["usage"]["threads"].as_u64();
            assert!(threads.is_some_and(|threads| threads >= 7), "supervisor, worker and five shims: {cell:#}");
        }
    }
}
