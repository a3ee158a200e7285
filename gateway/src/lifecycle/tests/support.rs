//! What the tests are made of: a lifecycle with tenants, a shim, and clients.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Barrier, Once};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use pillion_proto::control::{Capabilities, Hello, MESSAGE_BYTES_MAX, Nack, ToGateway, ToShim, VERSION};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use tokio::io::AsyncReadExt;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};

use crate::base::TenantName;
use crate::config::{Policy, Ports};
use crate::lifecycle::pace::Rule;
use crate::lifecycle::site::{Paces, Rules};
use crate::lifecycle::{Lifecycle, LifecycleError, NamespaceRule, SiteSnapshot, SiteSockets};
use crate::sys;
use crate::tenant::testing::{self, Bench};
use crate::tenant::{Accepted, Core, SocketKind};

/// A test that waits for something that does not come ends here, instead of never.
pub(super) async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(300), test).await.expect("what the test waits for has not come")
}

/// A lifecycle, and tenants to serve.
pub(super) struct Ground {
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) bench: Bench,
    pub(super) root: tempfile::TempDir,
}

/// How a site of a test differs from a plain one.
pub(super) struct Unusual {
    pub(super) connections: u32,
    pub(super) orphan_grace: Option<Duration>,
    pub(super) namespace: NamespaceRule,
    pub(super) dir: Option<PathBuf>,
}

impl Default for Unusual {
    fn default() -> Self {
        Self { connections: 1000, orphan_grace: None, namespace: NamespaceRule::Shared, dir: None }
    }
}

impl Ground {
    pub(super) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        Self { lifecycle: Lifecycle::start().unwrap(), bench: Bench::new(serve), root }
    }

    /// A site, and where its sockets are.
    pub(super) fn site(&self, name: &str, ports: Ports) -> PathBuf {
        self.unusual_site(name, ports, Unusual::default())
    }

    pub(super) fn unusual_site(&self, name: &str, ports: Ports, unusual: Unusual) -> PathBuf {
        let dir = unusual.dir.clone().unwrap_or_else(|| self.root.path().join(name));
        self.site_with(name, ports, unusual, SiteSockets::Directory(dir.clone())).unwrap();
        dir
    }

    pub(super) fn site_with(
        &self,
        name: &str,
        ports: Ports,
        unusual: Unusual,
        sockets: SiteSockets,
    ) -> Result<(), LifecycleError> {
        let mut policy: Policy = testing::policy();
        policy.limits.connections = unusual.connections;
        let tenant = self.bench.attach(name, policy);
        let fast = Rule { burst: 10_000, interval: Duration::from_micros(1) };
        let rules = Rules {
            tenant: tenant.identity().name.clone(),
            ports,
            namespace: unusual.namespace,
            orphan_grace: unusual.orphan_grace,
            unannounced_grace: Duration::from_millis(1),
            paces: Paces { hellos: fast, messages: fast },
        };
        self.lifecycle.admit(tenant, sockets, rules)
    }

    /// Waits until a site's snapshot is as it should be.
    pub(super) async fn when(&self, name: &str, is: impl Fn(&SiteSnapshot) -> bool) {
        let name = TenantName::parse(name).unwrap();
        let mut status = self.lifecycle.sites().by_name[&name].status.clone();
        status.wait_for(|snapshot| is(snapshot)).await.unwrap();
    }

    pub(super) fn snapshot(&self, name: &str) -> SiteSnapshot {
        self.lifecycle.snapshot(&TenantName::parse(name).unwrap()).unwrap()
    }

    /// Connections that its tenant was handed, counted before anybody can answer them.
    pub(super) fn accepted(&self, name: &str) -> u64 {
        self.bench.registry.find(&TenantName::parse(name).unwrap()).unwrap().stats().connections.value()
    }

    pub(super) async fn remove(&self, name: &str) -> bool {
        self.lifecycle.remove(&TenantName::parse(name).unwrap()).await
    }

    /// Listeners that the acceptors know, `otlp` included.
    pub(super) fn slots(&self) -> usize {
        self.lifecycle.acceptors.iter().map(|acceptor| acceptor.slots().len()).sum()
    }

    /// A new lifecycle in place of this one's, as after a restart; tenants and directories stay.
    pub(super) async fn restart(&mut self) {
        self.lifecycle.hand_off().await;
        self.lifecycle = Lifecycle::start().unwrap();
    }
}

/// The tenant whose first connection keeps the worker busy: the test meets it at [`STALL`] twice, when the worker has come
/// there and when it may go on.
pub(super) const STALLED: &str = "shop/stalled";
pub(super) static STALL: Barrier = Barrier::new(2);
static FIRST: Once = Once::new();

/// Says who accepted the connection and how it is set, and stays until the client closes.
fn serve(accepted: Accepted, _core: Rc<Core>) -> LocalBoxFuture<'static, ()> {
    Box::pin(async move {
        let Accepted { socket, kind, permit } = accepted;
        let name = permit.tenant().identity().name.clone();
        if name.to_string() == STALLED {
            FIRST.call_once(|| {
                STALL.wait();
                STALL.wait();
            });
        }
        let settings = match kind {
            SocketKind::Unix => "unix".to_owned(),
            SocketKind::Tcp => format!(
                "tcp linger={:?} nodelay={:?} keepalive={:?} user_timeout={:?} nonblocking={}",
                sockopt::socket_linger(&socket),
                sockopt::tcp_nodelay(&socket),
                sockopt::socket_keepalive(&socket),
                sockopt::tcp_user_timeout(&socket),
                rustix::fs::fcntl_getfl(&socket).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK)),
            ),
        };
        rustix::io::write(&socket, format!("{name} {settings}\n").as_bytes()).unwrap();
        let socket = sys::readable(socket).unwrap();
        let read = |socket: &OwnedFd| Ok(rustix::io::read(socket, &mut [0; 64])?);
        while socket.async_io(Interest::READABLE, read).await.is_ok_and(|length| length > 0) {}
    })
}

/// What [`serve`] says of a connection as it should be.
pub(super) fn served(name: &str) -> String {
    format!("{name} tcp linger=Ok(None) nodelay=Ok(true) keepalive=Ok(true) user_timeout=Ok(30000) nonblocking=true\n")
}

/// A client's connection: its socket, and what it was told.
pub(super) async fn ask(address: SocketAddr) -> String {
    hear(&mut TcpStream::connect(address).await.unwrap()).await
}

pub(super) async fn hear(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&line)),
        }
    }
    String::from_utf8(line).unwrap()
}

pub(super) async fn connect_otlp(dir: &Path) -> UnixStream {
    UnixStream::connect(below(&open_dir(dir), "otlp")).await.unwrap()
}

/// Sends a byte with a descriptor.
pub(super) fn pass(socket: impl AsFd, fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    send(socket, b"x", &[fd])
}

/// The next packet, or `None` at the end.
pub(super) async fn receive(socket: &AsyncFd<OwnedFd>) -> Option<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let received = socket.async_io(Interest::READABLE, |socket| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok((got.bytes, fd))
    });
    match received.await {
        Ok((0, _)) => None,
        Ok((length, fd)) => {
            bytes.truncate(length);
            Some((bytes, fd))
        }
        // The other side closed without having read everything.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
        Err(error) => panic!("{error}"),
    }
}

pub(super) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags).map(drop)
}

/// Two listeners on loopback, as deep as the shim's, and the ports that they have.
pub(super) fn listeners() -> ([TcpListener; 2], Ports) {
    let listeners = [0, 1].map(|_| listen_on(SocketAddr::from(([127, 0, 0, 1], 0))));
    let [grpc, http] = [0, 1].map(|index: usize| listeners[index].local_addr().unwrap().port());
    (listeners, Ports { grpc, http })
}

pub(super) fn listen_on(address: SocketAddr) -> TcpListener {
    let listener = TcpListener::bind(address).unwrap();
    rustix::net::listen(&listener, 4096).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

pub(super) fn open_dir(dir: &Path) -> OwnedFd {
    rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

pub(super) fn below(dir: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// A shim whose every word the test chooses.
pub(super) struct Shim {
    socket: AsyncFd<OwnedFd>,
}

/// What HELLO was answered with.
pub(super) struct Greeting {
    pub(super) returned: Vec<(SocketAddr, OwnedFd)>,
}

impl Shim {
    pub(super) fn connect(dir: &Path) -> Self {
        Self::try_connect(dir).unwrap()
    }

    pub(super) fn try_connect(dir: &Path) -> rustix::io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(below(&open_dir(dir), "ctl"))?)?;
        Ok(Self { socket: sys::readable(socket).unwrap() })
    }

    /// Connected, greeted, and everything donated that is given.
    pub(super) async fn serving(dir: &Path, donations: &[TcpListener]) -> Self {
        let mut shim = Self::connect(dir);
        shim.hello().await;
        for (id, listener) in (1..).zip(donations) {
            assert_eq!(shim.donate(id, listener).await, Ok(()));
        }
        shim.send(&ToGateway::Ready, &[]);
        shim
    }

    pub(super) fn send(&self, message: &ToGateway, fds: &[BorrowedFd<'_>]) {
        self.send_bytes(&message.encode(), fds).unwrap();
    }

    pub(super) fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
        send(&self.socket, bytes, fds)
    }

    /// The next message, or `None` at the end of the session.
    pub(super) async fn receive(&mut self) -> Option<(ToShim, Option<OwnedFd>)> {
        let (bytes, fd) = receive(&self.socket).await?;
        Some((ToShim::decode(&bytes).unwrap().expect("a known message"), fd))
    }

    pub(super) async fn expect(&mut self, message: ToShim) {
        assert_eq!(self.receive().await.map(|(message, _)| message), Some(message));
    }

    pub(super) async fn hello(&mut self) -> Greeting {
        self.send(&hello(), &[]);
        let Some((ToShim::Welcome(_), None)) = self.receive().await else { panic!("WELCOME comes first") };
        let mut returned = Vec::new();
        loop {
            match self.receive().await {
                Some((ToShim::Return { address }, Some(fd))) => returned.push((address, fd)),
                Some((ToShim::Returned, None)) => return Greeting { returned },
                other => panic!("{other:?} between WELCOME and RETURNED"),
            }
        }
    }

    pub(super) async fn donate(&mut self, id: u32, fd: impl AsFd) -> Result<(), Nack> {
        self.send(&donation(id), &[fd.as_fd()]);
        self.answer(id).await
    }

    pub(super) async fn answer(&mut self, id: u32) -> Result<(), Nack> {
        match self.receive().await {
            Some((ToShim::Ack { id: of }, None)) if of == id => Ok(()),
            Some((ToShim::Nack(nack), None)) if nack.id == id => Err(nack),
            other => panic!("{other:?} instead of an answer to {id}"),
        }
    }
}

/// The address is a claim that nobody believes, so any will do.
pub(super) fn donation(id: u32) -> ToGateway {
    ToGateway::Donate { id, address: SocketAddr::from(([127, 0, 0, 1], 4317)) }
}

pub(super) fn hello() -> ToGateway {
    hello_with(Capabilities::DONATE | Capabilities::RELAY)
}

pub(super) fn hello_with(capabilities: Capabilities) -> ToGateway {
    // Claims of another identity, wherever there is room for one.
    ToGateway::Hello(Hello { version: VERSION, shim_version: "kube-system/etcd".to_owned(), instance: 1, capabilities })
}
