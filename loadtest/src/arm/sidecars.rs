//! Agents of one kind, each of which can be ended and started again: one in each pod, or one for all.

use std::net::SocketAddr;
use std::ops::Range;

use anyhow::Result;

use super::{Agent, End, Running, Site, wait_for_ports};

/// Starts the agent of that number.
type Start<'a> = dyn Fn(usize) -> Result<Agent> + 'a;

/// They run.
pub(super) struct Sidecars<'a> {
    agents: Vec<Agent>,
    start: Box<Start<'a>>,
    /// gRPC, HTTP.
    addresses: [SocketAddr; 2],
    site: &'a Site<'a>,
}

impl<'a> Sidecars<'a> {
    /// Starts so many; returns when every pod can send.
    pub(super) fn start(
        site: &'a Site<'a>,
        count: usize,
        addresses: [SocketAddr; 2],
        start: impl Fn(usize) -> Result<Agent> + 'a,
    ) -> Result<Self> {
        let agents = (0..count).map(&start).collect::<Result<_>>()?;
        let sidecars = Self { agents, start: Box::new(start), addresses, site };
        sidecars.wait()?;
        Ok(sidecars)
    }

    fn wait(&self) -> Result<()> {
        wait_for_ports(self.site.network, vec![self.addresses[0]; self.site.pods])
    }

    fn again(&mut self, which: Range<usize>, end: End) -> Result<()> {
        // All of them first: they end at the same time.
        self.agents[which.clone()].iter().try_for_each(|agent| agent.ask(end))?;
        for number in which {
            self.agents[number].ended()?;
            self.agents[number] = (self.start)(number)?;
        }
        self.wait()
    }
}

impl Running for Sidecars<'_> {
    fn grpc(&self, _pod: usize) -> SocketAddr {
        self.addresses[0]
    }

    fn http(&self, _pod: usize) -> SocketAddr {
        self.addresses[1]
    }

    fn restart(&mut self, end: End) -> Result<()> {
        self.again(0..self.agents.len(), end)
    }

    fn replace(&mut self, pod: usize) -> Result<()> {
        // What all pods share has no part in the end of one of them.
        if self.agents.len() == self.site.pods { self.again(pod..pod + 1, End::Graceful) } else { Ok(()) }
    }
}
