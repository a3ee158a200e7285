//! `pillion send` against a server that the test plays.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use crate::process::run;

/// Serves one connection with these answers, one for each request; gives back path, headers and body of what came.
fn serve(listener: TcpListener, answers: Vec<&'static str>) -> Vec<(String, String, Vec<u8>)> {
    let (stream, _) = listener.accept().expect("somebody connects");
    let mut stream = BufReader::new(stream);
    let mut requests = Vec::new();
    for answer in answers {
        let mut path = String::new();
        stream.read_line(&mut path).expect("a request");
        let (mut headers, mut line) = (String::new(), String::new());
        while stream.read_line(&mut line).expect("headers") > 2 {
            headers.push_str(&line.to_ascii_lowercase());
            line.clear();
        }
        let length = headers.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a body");
        let mut body = vec![0; length.parse().expect("a number")];
        stream.read_exact(&mut body).expect("a body");
        requests.push((path, headers, body));
        stream.get_mut().write_all(answer.as_bytes()).expect("a connected client");
    }
    requests
}

/// Scenario: one round to a server that accepts everything.
/// Guarantees: each signal goes to its path as OTLP with one item; the status is 0 and the output says what was accepted.
#[test]
fn a_round_is_one_item_of_each_signal() {
    let dir = tempfile::tempdir().expect("writable");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}/base", listener.local_addr().expect("bound"));
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
    let server = std::thread::spawn(move || serve(listener, vec![OK; 3]));

    let (code, stdout, stderr) = run(dir.path(), &["send", "--endpoint", &endpoint]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("1 span, 1 data point, 1 log record"), "{stdout}");

    let requests = server.join().expect("the server ends");
    let paths: Vec<&str> = requests.iter().map(|request| request.0.trim_end()).collect();
    let expected = ["traces", "metrics", "logs"].map(|signal| format!("POST /base/v1/{signal} HTTP/1.1"));
    assert_eq!(paths, expected);
    assert!(requests.iter().all(|request| request.1.contains("content-type: application/x-protobuf")));
    let traces = ExportTraceServiceRequest::decode(requests[0].2.as_slice()).expect("OTLP");
    let span = &traces.resource_spans[0].scope_spans[0].spans[0];
    assert!(
        span.trace_id.len() == 16 && span.span_id.len() == 8 && span.end_time_unix_nano > span.start_time_unix_nano
    );
    let metrics = ExportMetricsServiceRequest::decode(requests[1].2.as_slice()).expect("OTLP");
    assert_eq!(metrics.resource_metrics[0].scope_metrics[0].metrics.len(), 1);
    let logs = ExportLogsServiceRequest::decode(requests[2].2.as_slice()).expect("OTLP");
    assert_eq!(logs.resource_logs[0].scope_logs[0].log_records[0].trace_id, span.trace_id);
}

/// Scenario: nobody listens, the server refuses, and the endpoint is one that `send` does not speak.
/// Guarantees: status 1 and the reason, with what to do where that is known.
#[test]
fn a_failure_is_explained() {
    let dir = tempfile::tempdir().expect("writable");
    let [nobody] = crate::process::free_ports();
    let (code, _, stderr) = run(dir.path(), &["send", "--endpoint", &format!("http://127.0.0.1:{nobody}")]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("cannot connect") && stderr.contains("pillion standalone"), "{stderr}");

    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    const BUSY: &str = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 3\r\ncontent-length: 6\r\n\r\n\x12\x04slow";
    let server = std::thread::spawn(move || serve(listener, vec![BUSY]));
    let (code, _, stderr) = run(dir.path(), &["send", "--endpoint", &endpoint]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("refused with 429 Too Many Requests: slow (try again in 3 s)"), "{stderr}");
    assert_eq!(server.join().expect("the server ends").len(), 1);

    let (code, _, stderr) = run(dir.path(), &["send", "--endpoint", "https://127.0.0.1:1"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("plain http only"), "{stderr}");
}
