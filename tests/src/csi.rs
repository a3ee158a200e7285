//! A running `pillion csi`, and a gateway as far as custody goes.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use pillion_proto::custody::{MESSAGE_BYTES_MAX, ToDriver, ToGateway, VERSION};
use rustix::fs::FlockOperation;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::Signal;

use crate::gateway::kill;
use crate::kubelet::{Kubelet, Registered};
use crate::lines::Lines;

/// A driver that says nothing for this long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// The process. Killed when dropped.
#[derive(Debug)]
pub struct Driver {
    child: Child,
    log: Lines,
    paths: Paths,
}

/// Where everything is, below one directory.
#[derive(Debug, Clone)]
pub struct Paths {
    dir: PathBuf,
}

impl Paths {
    /// All below `dir`.
    pub fn below(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// `--kubelet-dir`
    pub fn kubelet(&self) -> PathBuf {
        self.dir.join("kubelet")
    }

    /// `--custody`
    pub fn custody(&self) -> PathBuf {
        self.dir.join("run/custody.sock")
    }

    /// `--data-dir`
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The socket by which the kubelet finds the driver.
    pub fn registration(&self) -> PathBuf {
        self.kubelet().join("plugins_registry/pillion@csi.pillion.dev-reg.sock")
    }

    /// The socket on which the kubelet calls it.
    pub fn endpoint(&self) -> PathBuf {
        self.kubelet().join("plugins/csi.pillion.dev/csi.sock")
    }
}

impl Driver {
    /// Starts the command `node` as it runs in a cluster: uid 0 without a capability. Waits until it can be registered and
    /// serves gateways.
    pub fn start(node: &str, paths: &Paths) -> Self {
        let driver = Self::spawn(node, paths, None);
        driver.wait_for_line("waiting for a gateway");
        driver
    }

    /// Starts it, and waits for nothing. `descriptors_max` is its RLIMIT_NOFILE; `None`: as it is here.
    pub fn spawn(node: &str, paths: &Paths, descriptors_max: Option<u32>) -> Self {
        // Both of util-linux, which every distribution has; each becomes the next, so that the pid is the driver's.
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "setpriv", "--bounding-set=-all", "--inh-caps=-all"]);
        if let Some(limit) = descriptors_max {
            command.args(["prlimit", &format!("--nofile={limit}:{limit}")]);
        }
        let mut child = command
            .args([node, "csi", "--node-name", "node-7", "--gateway-id", "0"])
            .arg("--kubelet-dir")
            .arg(paths.kubelet())
            .arg("--custody")
            .arg(paths.custody())
            .arg("--data-dir")
            .arg(paths.data())
            .env("PILLION_LOG", "debug,h2=info,hyper=info")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command under test starts");
        let log = Lines::of(child.stderr.take().expect("piped"));
        Self { child, log, paths: paths.clone() }
    }

    /// Where everything is.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Has the kubelet register it.
    pub fn register(&self, kubelet: &Kubelet) -> Registered {
        kubelet.register(&self.paths.registration())
    }

    /// The next line of its log that holds `text`.
    pub fn wait_for_line(&self, text: &str) -> String {
        self.log.wait_for(text)
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.log.all()
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM; returns how it ended.
    pub fn stop(mut self) -> ExitStatus {
        kill(self.child.id(), Signal::TERM);
        self.child.wait().expect("a child can be waited for")
    }

    /// kill -9
    pub fn kill(mut self) {
        kill(self.child.id(), Signal::KILL);
        self.child.wait().expect("a child can be waited for");
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Already gone is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("the driver said:\n{}", self.log());
        }
    }
}

/// The gateway's side of custody, without a gateway behind it.
#[derive(Debug)]
pub struct Holder {
    socket: OwnedFd,
}

/// Takes the data directory's lock, as the queue does.
pub fn lock(paths: &Paths) -> File {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(paths.data().join("lock"))
        .expect("the driver has prepared the data directory");
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).expect("nobody else has it");
    file
}

impl Holder {
    /// Connects and says HELLO with `lock`.
    pub fn connect(paths: &Paths, lock: impl AsFd) -> Self {
        let holder = Self { socket: connect(&paths.custody(), SocketType::SEQPACKET).expect("the driver listens") };
        let hello = ToDriver::Hello { version: VERSION, gateway_version: "test".to_owned(), instance: 7 };
        holder.send(&hello, Some(lock.as_fd()));
        holder
    }

    /// Connects and says nothing.
    pub fn silent(paths: &Paths) -> Self {
        Self { socket: connect(&paths.custody(), SocketType::SEQPACKET).expect("the driver listens") }
    }

    /// Why it was refused.
    ///
    /// # Panics
    /// When it was not.
    pub fn refusal(&self) -> String {
        let refused = self.receive().map(|(message, _)| message);
        let Some(ToGateway::Refused { reason }) = refused else { panic!("{refused:?}") };
        assert!(self.receive().is_none(), "the driver hangs up");
        reason
    }

    /// Sends one message.
    pub fn send(&self, message: &ToDriver, fd: Option<BorrowedFd<'_>>) {
        let fds = fd.map(|fd| [fd]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(fds) = &fds {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "the space is for one descriptor");
        }
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(&message.encode())], &mut control, SendFlags::NOSIGNAL)
            .expect("the driver reads");
    }

    /// The next message, with the descriptor that came along; `None` when the driver has hung up.
    pub fn receive(&self) -> Option<(ToGateway, Option<OwnedFd>)> {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
        let received = match received {
            Ok(received) => received,
            Err(rustix::io::Errno::CONNRESET) => return None,
            Err(error) => panic!("the driver said nothing for too long: {error}"),
        };
        let mut fd = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                fd = fds.next();
            }
        }
        let packet = bytes.get(..received.bytes).filter(|packet| !packet.is_empty())?;
        let message = ToGateway::decode(packet).expect("a message of the protocol").expect("of a known kind");
        assert_eq!(message.carries_fd(), fd.is_some(), "{message:?}");
        Some((message, fd))
    }

    /// Everything up to the driver's READY, after WELCOME, and after what it holds was returned.
    pub fn list(&self, held: &[OwnedFd]) -> Vec<(ToGateway, OwnedFd)> {
        let welcome = self.receive().map(|(message, _)| message);
        assert!(matches!(welcome, Some(ToGateway::Welcome { version: VERSION, .. })), "{welcome:?}");
        for socket in held {
            self.send(&ToDriver::Return, Some(socket.as_fd()));
        }
        self.send(&ToDriver::Ready, None);
        let mut list = Vec::new();
        loop {
            match self.receive() {
                Some((ToGateway::Ready, None)) => return list,
                Some((message, Some(fd))) => list.push((message, fd)),
                other => panic!("neither a volume nor the end of the list: {other:?}"),
            }
        }
    }
}

/// Connects to a Unix socket, whatever the length of its path.
pub fn connect(path: &Path, kind: SocketType) -> std::io::Result<OwnedFd> {
    let dir = File::open(path.parent().expect("a path of a socket"))?;
    let name = path.file_name().expect("a path of a socket");
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(SILENCE_MAX))?;
    let short = Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    rustix::net::connect(&socket, &SocketAddrUnix::new(&short)?)?;
    Ok(socket)
}

/// The kernel's number of a socket, whoever holds it: SO_COOKIE.
pub fn cookie(socket: impl AsFd) -> u64 {
    rustix::net::sockopt::socket_cookie(socket).expect("a socket")
}
