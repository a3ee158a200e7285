//! The lifecycle against a shim that each test plays itself, on real sockets and real threads, with real tenants whose
//! connections are answered by [`support::serve`].

mod accepting;
mod conversation;
mod donations;
mod given;
mod namespaces;
mod support;
