//! The conversation with a shim: what its messages lead to, and what it is told.

use std::os::fd::AsFd;
use std::time::Instant;

use pillion_proto::control::{Hello, Mode, Nack, NackCode, ToGateway, ToShim, VERSION, Welcome, negotiate};

use super::Site;
use crate::config::Ports;
use crate::lifecycle::custody::Event;
use crate::lifecycle::donation::{self, Refusal};
use crate::lifecycle::reaper::Foreign;
use crate::lifecycle::session::Packet;
use crate::lifecycle::slot::Slot;

impl Site {
    pub(super) fn handle(&mut self, packet: Packet) {
        self.messages.take(Instant::now());
        let decoded = ToGateway::decode(packet.bytes());
        let fds_cut = packet.fds_cut;
        let mut fds = packet.fds;
        let message = match decoded {
            Ok(Some(message)) if fds.len() <= 1 => message,
            Ok(None) => return self.around.counters.messages_unknown.add(1),
            malformed => {
                let reason = malformed.err().map_or("more than one descriptor".to_owned(), |error| error.to_string());
                if self.may_log() {
                    tracing::warn!(tenant = %self.rules.tenant, reason, "closing a control session");
                }
                self.around.counters.messages_malformed.add(1);
                return self.end_session();
            }
        };
        let fd = fds.pop().filter(|_| message.carries_fd());
        let greeted = self.is_greeted();
        match message {
            ToGateway::Hello(hello) if !greeted => self.greet(&hello),
            ToGateway::Hello(_) => self
                .refuse(0, &out_of_order("HELLO is the first message of a connection, and the only one of its kind")),
            ToGateway::Donate { id, .. } if greeted => self.donate(id, fd, fds_cut),
            ToGateway::Bye { id } if greeted => self.step(Event::Bye { id }),
            ToGateway::Ready if greeted => self.step(Event::Ready),
            ToGateway::Conn { id, .. } if greeted => {
                self.refuse(id, &Refusal::new(NackCode::Unsupported, reason(NackCode::Unsupported)))
            }
            ToGateway::Donate { id, .. } | ToGateway::Conn { id, .. } | ToGateway::Bye { id } => {
                self.refuse(id, &out_of_order("HELLO comes first"));
            }
            ToGateway::Ready | ToGateway::Dialed { .. } | ToGateway::Pong => {}
        }
    }

    fn greet(&mut self, hello: &Hello) {
        let Some(session) = &mut self.session else { return };
        let namespace = session.namespace;
        let refusal = match negotiate(hello.version) {
            Ok(_) => self.around.claims.claim(namespace, &self.rules.tenant, self.rules.namespace).err(),
            Err(too_old) => Some(Refusal::new(NackCode::VersionTooOld, too_old.to_string())),
        };
        if let Some(refusal) = refusal {
            self.refuse(0, &refusal);
            return self.end_session();
        }
        session.capabilities = Some(hello.capabilities);
        if self.may_log() {
            // Quoted by the logger, and cut: it is whatever the pod likes.
            let shim: String = hello.shim_version.chars().take(40).collect();
            tracing::info!(tenant = %self.rules.tenant, shim, instance = hello.instance, "a shim connected");
        }
        self.doorway.tenant.reattach();
        self.step(Event::Greeted { namespace });
    }

    fn donate(&mut self, id: u32, fd: Option<Foreign>, fds_cut: bool) {
        let Some(session) = &self.session else { return };
        let Some(fd) = fd.filter(|_| !fds_cut) else {
            return self.refuse(id, &Refusal::new(NackCode::FdMissing, reason(NackCode::FdMissing)));
        };
        match donation::vet(&fd, self.rules.ports, session.namespace) {
            Ok(listener) => {
                self.donated = Some(fd);
                self.step(Event::Donated { id, listener });
            }
            Err(refusal) => self.refuse(id, &refusal),
        }
    }

    pub(super) fn welcome(&mut self, mode: Mode) {
        let can_donate =
            self.session.as_ref().and_then(|session| session.capabilities).is_some_and(|all| all.allows(Mode::Donate));
        let mode = if can_donate { mode } else { Mode::Relay };
        let Ports { grpc, http } = self.rules.ports;
        self.send(&ToShim::Welcome(Welcome { version: VERSION, ports: vec![grpc, http], mode }), None);
    }

    pub(super) fn refuse(&mut self, id: u32, refusal: &Refusal) {
        let Refusal { code, reason } = refusal;
        self.around.counters.refuse(*code);
        if self.may_log() {
            tracing::info!(tenant = %self.rules.tenant, id, ?code, reason, "refused a request of a shim");
        }
        self.status.send_modify(|status| {
            status.refused_donations += 1;
            status.last_refusal = Some(reason.clone());
        });
        self.send(&ToShim::Nack(Nack { id, code: *code, reason: reason.clone() }), None);
    }

    /// What custody refuses, or takes back. A session that has not greeted yet is told everything when it does.
    pub(super) fn refuse_by_code(&mut self, id: u32, code: NackCode) {
        if !self.is_greeted() {
            return;
        }
        let reason = reason(code);
        if code == NackCode::ListenerDead {
            return self.send(&ToShim::Nack(Nack { id, code, reason: reason.to_owned() }), None);
        }
        self.refuse(id, &Refusal::new(code, reason));
    }

    pub(super) fn acknowledge(&mut self, id: u32) {
        if self.is_greeted() {
            self.send(&ToShim::Ack { id }, None);
        }
    }

    fn is_greeted(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.capabilities.is_some())
    }

    /// Without a session there is nobody to tell; whoever comes next is told everything.
    pub(super) fn send(&mut self, message: &ToShim, slot: Option<&Slot>) {
        let Some(session) = &self.session else { return };
        if let Err(error) = session.send(message, slot.map(AsFd::as_fd)) {
            if error == rustix::io::Errno::AGAIN {
                self.around.counters.sessions_unread.add(1);
            }
            if self.may_log() {
                tracing::info!(tenant = %self.rules.tenant, %error, "closing a control session that cannot be sent to");
            }
            self.end_session();
        }
    }
}

fn out_of_order(reason: &str) -> Refusal {
    Refusal::new(NackCode::OutOfOrder, reason)
}

/// For the refusals that custody decides, which knows no more than the code.
fn reason(code: NackCode) -> &'static str {
    match code {
        NackCode::TooMany => "the tenant has as many listeners as it may have; close some",
        NackCode::Unsupported => "this gateway takes no listeners or connections from this pod now; relay to otlp",
        NackCode::Draining => "the pod has said BYE, and is being drained",
        NackCode::FdMissing => "no descriptor arrived: the kernel or a security module left it out; relay to otlp",
        NackCode::OutOfOrder => "not at this point of the conversation",
        NackCode::ListenerDead => "the listener was shut down and is let go; close it, bind anew, donate again",
        _ => "refused",
    }
}
