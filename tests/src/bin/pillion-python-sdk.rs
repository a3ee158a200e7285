//! Runs OpenTelemetry's Python SDK against a real gateway and checks what arrived.
//!
//! usage: pillion-python-sdk PYTHON SCRIPT

use std::process::{Command, ExitCode};

use pillion_tests::station::Station;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, python, script] = &arguments[..] else {
        eprintln!("usage: pillion-python-sdk PYTHON SCRIPT");
        return ExitCode::from(2);
    };
    let node = std::env::current_exe().expect("this program has a path").with_file_name("pillion-node");
    if !node.exists() {
        eprintln!("{} is missing: cargo build --release -p pillion-tests --bins", node.display());
        return ExitCode::FAILURE;
    }
    let station =
        Station::start(&node.display().to_string(), "{allow: [\"*\"], protocol: grpc, endpoint: \"http://SINK\"}");
    let addresses = [station.ports.grpc, station.ports.http, station.sent.address()].map(|address| address.to_string());
    let status = Command::new(python).arg(script).args(addresses).status().expect("python starts");
    assert!(status.success(), "{script} ended with {status}\n{}", station.gateway.explain());
    let [spans, metrics, logs] = station.check();
    println!(
        "Python SDK, gRPC and HTTP/protobuf: {spans} spans, {metrics} metrics, {logs} log records arrived as sent"
    );
    if (spans, logs) == (200, 100) && metrics >= 4 {
        ExitCode::SUCCESS
    } else {
        eprintln!("200 spans, at least 4 metrics and 100 log records were expected");
        ExitCode::FAILURE
    }
}
