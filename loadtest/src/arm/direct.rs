//! No agent: pods send to the backend themselves. What is noise of the machine shows here.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Arm, Running, Site};
use crate::network::Place;

/// The arm.
#[derive(Debug, Clone, Copy)]
pub struct Direct;

#[derive(Debug)]
struct Sinks(Vec<SocketAddr>);

impl Arm for Direct {
    fn name(&self) -> &str {
        "direct"
    }

    fn about(&self) -> String {
        "no agent: pods send to the backend themselves".to_owned()
    }

    fn attests(&self) -> Option<&'static str> {
        None
    }

    fn start<'a>(&'a self, site: &'a Site<'a>) -> Result<Box<dyn Running + 'a>> {
        Ok(Box::new(Sinks((0..site.pods).map(|pod| site.network.sink(Place::Pod(pod), site.sink_port)).collect())))
    }
}

impl Running for Sinks {
    fn grpc(&self, pod: usize) -> SocketAddr {
        self.0[pod]
    }

    fn http(&self, pod: usize) -> SocketAddr {
        self.0[pod]
    }
}
