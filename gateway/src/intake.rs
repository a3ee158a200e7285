//! OTLP on one connection of one tenant: gRPC and HTTP told apart by the first bytes, limits, decoding, one reply mapper.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;

use crate::tenant::{Accepted, Core};

/// Serves one connection until either side closes it. A `tenant::Serve`.
pub fn serve(accepted: Accepted, core: Rc<Core>) -> LocalBoxFuture<'static, ()> {
    let _ = (accepted, core);
    todo!()
}
