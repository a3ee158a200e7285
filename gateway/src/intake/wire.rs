//! The socket of one connection, read only while its tenant may.
//!
//! Owns the socket and the first bytes that were read to tell the protocols apart. It never reads while the tenant is held
//! back, nor once its slice of time is spent: whatever a protocol's implementation does in a loop, it ends there.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::tenant::{Core, SocketKind};

/// The longest run of bytes that may be put back.
const SNIFFED_MAX: usize = 24;

/// A paced socket.
#[derive(Debug)]
pub(super) struct Wire {
    socket: Socket,
    core: Rc<Core>,
    vitals: Rc<Vitals>,
    sniffed: [u8; SNIFFED_MAX],
    /// What of `sniffed` is still to be read.
    replay: std::ops::Range<usize>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What a connection's deadlines are judged by.
#[derive(Debug, Default)]
pub(super) struct Vitals {
    /// HTTP/1: bytes arrived after the last request ended, and no new one has begun.
    pub(super) in_head: Cell<bool>,
    /// HTTP/1: a request is being served.
    pub(super) busy: Cell<bool>,
    /// HTTP/1: a request was answered with some of its body unread.
    pub(super) unread: Cell<bool>,
    /// HTTP/2: a message came that the narrow window slows down.
    pub(super) large: Cell<bool>,
}

impl Wire {
    pub(super) fn new(socket: OwnedFd, kind: SocketKind, core: Rc<Core>) -> io::Result<Self> {
        let socket = match kind {
            SocketKind::Tcp => {
                let socket = std::net::TcpStream::from(socket);
                socket.set_nonblocking(true)?;
                Socket::Tcp(TcpStream::from_std(socket)?)
            }
            SocketKind::Unix => {
                let socket = std::os::unix::net::UnixStream::from(socket);
                socket.set_nonblocking(true)?;
                Socket::Unix(UnixStream::from_std(socket)?)
            }
        };
        Ok(Self { socket, core, vitals: Rc::default(), sniffed: [0; SNIFFED_MAX], replay: 0..0 })
    }

    pub(super) fn vitals(&self) -> Rc<Vitals> {
        self.vitals.clone()
    }

    /// Puts bytes back that were read before: they come first in the next read.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.sniffed[..bytes.len()].copy_from_slice(bytes);
        self.replay = 0..bytes.len();
    }

    fn note(&self, received: usize) {
        if received > 0 && !self.vitals.busy.get() {
            self.vitals.in_head.set(true);
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.replay.is_empty() {
            let length = this.replay.len().min(buf.remaining());
            let (start, end) = (this.replay.start, this.replay.start + length);
            buf.put_slice(&this.sniffed[start..end]);
            this.replay.start = end;
            this.note(length);
            return Poll::Ready(Ok(()));
        }
        // The connection's own future is woken when the tenant is read again.
        if this.core.is_held() {
            return Poll::Pending;
        }
        ready!(this.core.pace().poll(cx));
        let before = buf.filled().len();
        match &mut this.socket {
            Socket::Tcp(socket) => ready!(Pin::new(socket).poll_read(cx, buf))?,
            Socket::Unix(socket) => ready!(Pin::new(socket).poll_read(cx, buf))?,
        }
        this.note(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Socket::Unix(socket) => Pin::new(socket).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Socket::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Socket::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::task::Waker;

    use futures_util::FutureExt;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::tenant::testing::{Bench, policy};

    /// Scenario: bytes are there, but the tenant's slice is spent, then the tenant is held back, then neither.
    /// Guarantees: nothing is read in the first two cases, so no loop of a protocol's implementation outlasts its slice; in
    /// the first the reader has asked to be polled again, in the second only the end of the hold wakes it.
    #[tokio::test]
    async fn nothing_is_read_out_of_turn() {
        let bench = Bench::new(crate::intake::serve);
        let core = bench.local_core(&bench.attach("shop/cart", policy()));
        let (mut peer, socket) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut wire = Wire::new(socket.into(), SocketKind::Unix, core.clone()).unwrap();
        let begin = || core.begin_slice(Waker::noop());
        peer.write_all(b"abc").unwrap();
        let mut byte = [0; 1];
        begin();
        wire.read_exact(&mut byte).await.expect("within the slice");

        while !core.pace().is_spent() {
            std::hint::spin_loop();
        }
        let (waker, woken) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        assert!(Box::pin(wire.read_exact(&mut byte)).poll_unpin(&mut cx).is_pending(), "the slice is spent");
        assert_eq!(woken(), 1);

        core.hold(true);
        begin();
        assert!(Box::pin(wire.read_exact(&mut byte)).poll_unpin(&mut cx).is_pending(), "the tenant is held");
        assert_eq!(woken(), 1);

        core.hold(false);
        begin();
        assert!(Box::pin(wire.read_exact(&mut byte)).poll_unpin(&mut cx).is_ready());
        assert_eq!(&byte, b"b");
        bench.registry.close();
    }

    fn counting_waker() -> (Waker, impl Fn() -> usize) {
        #[derive(Default)]
        struct Count(std::sync::atomic::AtomicUsize);
        impl std::task::Wake for Count {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let count = std::sync::Arc::new(Count::default());
        (count.clone().into(), move || count.0.load(std::sync::atomic::Ordering::Relaxed))
    }
}
