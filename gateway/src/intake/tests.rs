//! Intake over real loopback sockets, against a queue that commits when a test says so.

mod deadlines;
mod grpc_calls;
mod harness;
mod hostile;
mod http_requests;
mod lifecycle;
