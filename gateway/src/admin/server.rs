//! Accepts on the admin address and the admin socket, and serves HTTP/1.1, within limits.
//!
//! Owns one task for each listener and one for each connection, all of which end with the [`Server`]. A client may not
//! hold a connection by sending slowly, by not reading, or by being many: beyond [`CONNECTIONS_MAX`] it waits in the
//! kernel's backlog.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Sources;
use super::metrics::Series;
use super::queue;
use super::route;
use super::socket::{self, Name};

/// Open connections; more wait in the backlog.
const CONNECTIONS_MAX: usize = 64;

/// For a request's head, also while a kept-alive connection is idle.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// A connection that is older is closed after its present request.
const AGE_MAX: Duration = Duration::from_secs(120);

/// For that present request, and at the end of the gateway.
const LAST_REQUEST_MAX: Duration = Duration::from_secs(10);

/// A request's head, and the only buffer that a client can fill.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// After an accept that failed (no file descriptors left, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The running admin server. Dropping it ends it at once.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    listeners: JoinSet<()>,
    context: Arc<Context>,
    socket: Option<Name>,
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) sources: Sources,
    pub(super) series: Series,
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ends {
    /// Over the network, or this machine's loopback.
    Network { local: IpAddr, peer: IpAddr },
    /// Over the admin socket, by somebody whom the kernel knows as our user or as root.
    Socket,
}

#[derive(Debug)]
enum Listener {
    Network(TcpListener),
    Socket(UnixListener),
}

#[derive(Debug)]
enum Stream {
    Network(TcpStream, Ends),
    Socket(UnixStream),
}

impl Server {
    /// Serves on `listener` from now on. Must be called on the control runtime.
    pub fn start(listener: std::net::TcpListener, sources: Sources) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let accepting = TcpListener::from_std(listener)?;
        let stop = watch::Sender::new(false);
        let context = Arc::new(Context { sources, series: Series::default() });
        let mut listeners = JoinSet::new();
        listeners.spawn(accept(Listener::Network(accepting), context.clone(), stop.subscribe()));
        Ok(Self { address, stop, listeners, context, socket: None })
    }

    /// Serves on the admin socket of a data directory too, in the place of whatever has its name there: only for whoever has
    /// the directory's lock.
    pub fn serve_at(&mut self, data_dir: &Path) -> io::Result<()> {
        let (listener, name) = socket::bind(data_dir)?;
        self.listeners.spawn(accept(Listener::Socket(listener), self.context.clone(), self.stop.subscribe()));
        self.socket = Some(name);
        Ok(())
    }

    /// Takes the admin socket's name away, before the directory's lock is given up.
    pub fn withdraw(&mut self) {
        self.socket = None;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections and closes idle ones; requests under way are answered while the runtime runs.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Resolves when, after [`Server::stop`], the last connection is closed: at most ten seconds later.
    pub async fn stopped(mut self) {
        while self.listeners.join_next().await.is_some() {}
    }
}

async fn accept(listener: Listener, context: Arc<Context>, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let mut stopping = pin!(stopped(stop.clone()));
    loop {
        tokio::select! {
            () = &mut stopping => break,
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok(Some(Stream::Network(stream, ends))) => {
                    connections.spawn(serve(stream, ends, context.clone(), stop.clone()));
                }
                Ok(Some(Stream::Socket(stream))) => {
                    connections.spawn(serve(stream, Ends::Socket, context.clone(), stop.clone()));
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "the admin server cannot accept");
                    let _ended_early = tokio::time::timeout(ACCEPT_PAUSE, stop.changed()).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

impl Listener {
    /// The next connection; `None`: of somebody who may not ask. Cancel safe.
    async fn accept(&self) -> io::Result<Option<Stream>> {
        match self {
            Self::Network(listener) => {
                let (stream, peer) = listener.accept().await?;
                let Ok(local) = stream.local_addr() else { return Ok(None) };
                Ok(Some(Stream::Network(stream, Ends::Network { local: local.ip(), peer: peer.ip() })))
            }
            Self::Socket(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(socket::is_trusted(&stream).then_some(Stream::Socket(stream)))
            }
        }
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ends: Ends,
    context: Arc<Context>,
    stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let context = context.clone();
        async move {
            Ok::<_, Infallible>(match queue::is_asked(&request) {
                true => queue::answer(request, ends, &context).await,
                false => route::answer(&request, ends, &context).await,
            })
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    // What goes wrong with a connection is its client's affair.
    tokio::select! {
        _ended = &mut connection => return,
        () = stopped(stop) => {}
        () = tokio::time::sleep(AGE_MAX) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ended = tokio::time::timeout(LAST_REQUEST_MAX, connection).await;
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the server was dropped.
    let _stopped = stop.wait_for(|stop| *stop).await;
}
