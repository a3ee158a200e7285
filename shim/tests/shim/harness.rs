//! A gateway as the shim sees it, in the hands of a test: every message is sent and awaited by name.
//!
//! Nothing here waits without a limit: what does not come within [`PATIENCE`] fails the test.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use pillion_proto::control::{Hello, Mode, ToGateway, ToShim, Welcome};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};

/// Far beyond what any step takes; only a broken shim meets it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Two ports that no other test gets, as long as this lives: they are bound here without listening, so that the kernel
/// gives them to nobody, and SO_REUSEADDR lets the shim bind them as well.
pub(crate) struct Ports {
    pub(crate) grpc: u16,
    pub(crate) http: u16,
    _reserved: [OwnedFd; 4],
}

impl Ports {
    pub(crate) fn reserve() -> Self {
        let bind = |address: SocketAddr| {
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
            sockopt::set_socket_reuseaddr(&socket, true).unwrap();
            rustix::net::bind(&socket, &address).unwrap();
            socket
        };
        let port = |socket: &OwnedFd| SocketAddr::try_from(rustix::net::getsockname(socket).unwrap()).unwrap().port();
        let (first, second) = (bind(v4(0)), bind(v4(0)));
        let (grpc, http) = (port(&first), port(&second));
        Self { grpc, http, _reserved: [first, second, bind(v6(grpc)), bind(v6(http))] }
    }
}

pub(crate) fn v4(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

pub(crate) fn v6(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::LOCALHOST, port))
}

/// A running shim; killed when dropped.
pub(crate) struct Shim {
    child: Child,
    stderr: ChildStderr,
    heard: String,
}

impl Shim {
    pub(crate) fn start(dir: &Path, ports: &Ports, more: &[&str]) -> Self {
        Self::spawn(Command::new(env!("CARGO_BIN_EXE_pillion-shim")), dir, ports, more)
    }

    /// In a network namespace of its own, whose loopback interface is down.
    pub(crate) fn start_in_namespace(dir: &Path, ports: &Ports) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", env!("CARGO_BIN_EXE_pillion-shim")]);
        Self::spawn(command, dir, ports, &[])
    }

    fn spawn(mut command: Command, dir: &Path, ports: &Ports, more: &[&str]) -> Self {
        command.arg("run").arg("--dir").arg(dir);
        command.args(["--grpc", &ports.grpc.to_string(), "--http", &ports.http.to_string()]).args(more);
        let mut child = command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        Self { child, stderr, heard: String::new() }
    }

    /// Waits until the shim has said this on stderr.
    pub(crate) fn says(&mut self, words: &str) {
        while !self.heard.contains(words) {
            assert!(readable(&self.stderr), "never said `{words}`, but: {}", self.heard);
            let mut piece = [0; 1024];
            let read = self.stderr.read(&mut piece).unwrap();
            assert!(read > 0, "ended without `{words}`, but: {}", self.heard);
            self.heard.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        }
    }

    /// Waits until the shim sleeps in epoll without a timeout.
    pub(crate) fn sleeps_without_a_timer(&self) {
        let path = format!("/proc/{}/syscall", self.child.id());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = std::fs::read_to_string(&path).unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            // epoll_wait and epoll_pwait take -1, epoll_pwait2 a null pointer; the second argument is a buffer, so it is
            // no other call with few arguments.
            if words.len() > 4 && (words[4] == "0xffffffff" || words[4] == "0xffffffffffffffff" || words[4] == "0x0") {
                return;
            }
            assert!(Instant::now() < deadline, "still has a timer: {line}");
            std::thread::yield_now();
        }
    }

    pub(crate) fn terminate(&self) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM)
            .unwrap();
    }

    /// Waits for its end.
    pub(crate) fn ended(mut self) -> ExitStatus {
        let pid = rustix::process::pidfd_open(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::PidfdFlags::empty(),
        )
        .unwrap();
        assert!(readable(&pid), "does not end");
        self.child.wait().unwrap()
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A listening `ctl`.
pub(crate) struct Gateway {
    socket: OwnedFd,
}

impl Gateway {
    /// Binds under another name and renames, as gateway and csi do.
    pub(crate) fn listen(dir: &Path) -> Self {
        let dir_fd = rustix::fs::openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
        let at = |name: &str| PathBuf::from(format!("/proc/self/fd/{}/{name}", dir_fd.as_raw_fd()));
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(at(".new")).unwrap()).unwrap();
        rustix::net::listen(&socket, 16).unwrap();
        std::fs::rename(at(".new"), at("ctl")).unwrap();
        Self { socket }
    }

    pub(crate) fn accept(&self) -> Session {
        assert!(readable(&self.socket), "the shim does not connect");
        Session { socket: rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC).unwrap() }
    }

    pub(crate) fn nobody_waits(&self) -> bool {
        is_quiet(&self.socket)
    }

    /// Accepts a shim and lets it donate: everything it offers, acknowledged.
    pub(crate) fn serve(&self) -> (Session, BTreeMap<SocketAddr, TcpListener>) {
        let session = self.accept();
        session.hello();
        session.welcome(Mode::Donate);
        let donated = session.donations();
        (session, donated)
    }
}

/// One connection of a shim.
pub(crate) struct Session {
    socket: OwnedFd,
}

impl Session {
    pub(crate) fn send(&self, message: &ToShim) {
        self.send_bytes(&message.encode(), &[]);
    }

    pub(crate) fn send_bytes(&self, bytes: &[u8], fds: &[std::os::fd::BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    /// Gives a listener back, keeping the gateway's copy.
    pub(crate) fn give_back(&self, address: SocketAddr, listener: &TcpListener) {
        self.send_bytes(&ToShim::Return { address }.encode(), &[listener.as_fd()]);
    }

    /// The next message and its descriptor; none when the shim has closed.
    pub(crate) fn receive(&self) -> Option<(ToGateway, Option<OwnedFd>)> {
        assert!(readable(&self.socket), "the shim says nothing");
        let mut packet = [0; 8192];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let result = rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags);
        let received = match result {
            // It was killed before it had read everything.
            Err(Errno::CONNRESET) => return None,
            result => result.unwrap(),
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return None;
        }
        let message = ToGateway::decode(&packet[..received.bytes]).unwrap().unwrap();
        assert_eq!(fds.len(), usize::from(message.carries_fd()), "{message:?}");
        Some((message, fds.pop()))
    }

    pub(crate) fn hello(&self) -> Hello {
        match self.receive() {
            Some((ToGateway::Hello(hello), _)) => hello,
            other => panic!("not HELLO: {other:?}"),
        }
    }

    pub(crate) fn welcome(&self, mode: Mode) {
        self.send(&ToShim::Welcome(Welcome { version: 1, ports: vec![4317, 4318], mode }));
    }

    /// One DONATE, not acknowledged.
    pub(crate) fn donation(&self) -> (u32, SocketAddr, TcpListener) {
        match self.receive() {
            Some((ToGateway::Donate { id, address }, Some(fd))) => (id, address, listener(fd)),
            other => panic!("not DONATE: {other:?}"),
        }
    }

    /// All that is donated until READY, acknowledged, by the address that the sockets have.
    pub(crate) fn donations(&self) -> BTreeMap<SocketAddr, TcpListener> {
        let mut donated = BTreeMap::new();
        loop {
            match self.receive() {
                Some((ToGateway::Donate { id, address }, Some(fd))) => {
                    let listener = listener(fd);
                    assert_eq!(listener.local_addr().unwrap(), address);
                    assert!(donated.insert(address, listener).is_none(), "{address} twice");
                    self.send(&ToShim::Ack { id });
                }
                Some((ToGateway::Ready, None)) => return donated,
                other => panic!("neither DONATE nor READY: {other:?}"),
            }
        }
    }

    /// Waits until the shim has handled everything that was sent before.
    pub(crate) fn settle(&self) {
        self.send(&ToShim::Ping);
        assert_eq!(self.receive().map(|(message, _)| message), Some(ToGateway::Pong));
    }
}

/// A donated listener, without O_NONBLOCK, so that a test can wait for it.
fn listener(fd: OwnedFd) -> TcpListener {
    TcpListener::from(fd)
}

/// Accepts on a listener that may be non-blocking.
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    assert!(readable(listener), "nobody connects to {:?}", listener.local_addr());
    let stream = listener.accept().unwrap().0;
    limit(&stream);
    stream
}

pub(crate) fn accept_otlp(otlp: &UnixListener) -> std::os::unix::net::UnixStream {
    assert!(readable(otlp), "the shim does not dial otlp");
    let stream = otlp.accept().unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Binds `otlp`, by way of /proc for long paths.
pub(crate) fn listen_otlp(dir: &Path) -> UnixListener {
    let dir_fd = rustix::fs::openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    UnixListener::bind(format!("/proc/self/fd/{}/otlp", dir_fd.as_raw_fd())).unwrap()
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    limit(&stream);
    stream
}

fn limit(stream: &TcpStream) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
}

/// Waits until something can be read, or the other side has closed.
pub(crate) fn readable(fd: impl AsFd) -> bool {
    let patience = Timespec { tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap(), tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&patience)).unwrap() > 0
}

/// Whether nothing can be read at this moment.
pub(crate) fn is_quiet(fd: impl AsFd) -> bool {
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 0
}
