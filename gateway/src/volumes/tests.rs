//! The client against a stand-in of the CSI driver, over real sockets.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use pillion_proto::custody::{Kind, MESSAGE_BYTES_MAX, ToDriver, ToGateway, VERSION, Volume, bound_name};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_cookie};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::*;

const UID: &str = "1d0c-1";

/// What a wait may take before the test has failed.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the tenants were told.
#[derive(Debug)]
enum Told {
    Change(Change),
    Words(String),
}

struct Stand(SyncSender<Told>);

impl Stand {
    fn note(&self, told: Told) {
        // A test that has seen enough is gone.
        let _ = self.0.send(told);
    }
}

impl Tenants for Stand {
    fn change(self: Arc<Self>, change: Change) -> BoxFuture<'static, Result<(), String>> {
        let outcome = match &change.to {
            Some(pod) if pod.service_account == "unlucky" => Err("the log is full".to_owned()),
            Some(pod) if pod.service_account == "panic" => panic!("a test of what a panic leads to"),
            _ => Ok(()),
        };
        self.note(Told::Change(change));
        Box::pin(std::future::ready(outcome))
    }

    fn announced(&self, announced: bool) {
        self.note(Told::Words(format!("Announced({announced})")));
    }

    fn listed(&self, uids: &BTreeSet<Arc<str>>) {
        self.note(Told::Words(format!("Listed({:?})", uids.iter().collect::<Vec<_>>())));
    }

    fn dispose(&self, socket: OwnedFd) {
        drop(socket);
        self.note(Told::Words("Disposed".to_owned()));
    }
}

/// A client, and the other ends of everything that it has.
struct Ground {
    dir: tempfile::TempDir,
    listener: OwnedFd,
    told: Receiver<Told>,
    volumes: Arc<Volumes>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = unix(SocketType::SEQPACKET);
        set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE)).unwrap();
        let socket = dir.path().join("custody.sock");
        rustix::net::bind(&listener, &SocketAddrUnix::new(&socket).unwrap()).unwrap();
        rustix::net::listen(&listener, 4).unwrap();
        let proof = File::create(dir.path().join("lock")).unwrap().into();
        let (sender, told) = sync_channel(4096);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, volumes) = sync_channel(4096);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let settings = Settings { socket, proof, instance: 7 };
                let volumes = Arc::new(Volumes::start(settings, Arc::new(Stand(sender))));
                ready.send(volumes.clone()).unwrap();
                let _ = stopped.await;
                volumes.stop().await;
            });
        });
        let volumes = volumes.recv().unwrap();
        let ground = Self { dir, listener, told, volumes, stop: Some(stop), thread: Some(thread) };
        ground.expect("Announced(false)");
        ground
    }

    /// The next thing that the tenants were told, in words.
    fn next(&self) -> String {
        match self.told.recv_timeout(PATIENCE).expect("something is told") {
            Told::Change(Change { name, from, to }) => {
                let to = to.map(|pod| {
                    let cookies = [&pod.ctl, &pod.otlp].map(|socket| socket_cookie(socket).unwrap());
                    format!("{} {} {:?}", pod.uid, pod.service_account, cookies)
                });
                format!("{name}: {from:?} -> {to:?}")
            }
            Told::Words(words) => words,
        }
    }

    fn expect(&self, words: &str) {
        assert_eq!(self.next(), words);
    }

    /// Takes the client's connection up to its READY; the returned sockets' cookies.
    fn meet(&self) -> (Driver, Vec<u64>) {
        let socket = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC).unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).unwrap();
        let driver = Driver { socket };
        let (hello, proof) = driver.receive();
        let gateway_version = env!("CARGO_PKG_VERSION").to_owned();
        assert_eq!(hello, ToDriver::Hello { version: VERSION, gateway_version, instance: 7 });
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let lock = File::open(self.dir.path().join("lock")).unwrap().into();
        assert_eq!(inode(&proof.expect("the lock comes along")), inode(&lock));
        driver.send(&ToGateway::Welcome { version: VERSION, driver_version: "1".to_owned() }, None);
        let mut returned = Vec::new();
        loop {
            match driver.receive() {
                (ToDriver::Return, Some(socket)) => returned.push(socket_cookie(socket).unwrap()),
                (ToDriver::Ready, None) => break,
                other => panic!("{other:?}"),
            }
        }
        returned.sort_unstable();
        (driver, returned)
    }

    fn pod(&self, uid: &str) -> [OwnedFd; 2] {
        let dir = self.dir.path().join(uid);
        std::fs::create_dir(&dir).unwrap();
        [bound(&dir, Kind::Ctl, uid), bound(&dir, Kind::Otlp, uid)]
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        assert!(ended || std::thread::panicking(), "the client ends");
    }
}

struct Driver {
    socket: OwnedFd,
}

impl Driver {
    fn send(&self, message: &ToGateway, fd: Option<&OwnedFd>) {
        self.send_bytes(&message.encode(), fd);
    }

    fn send_bytes(&self, bytes: &[u8], fd: Option<&OwnedFd>) {
        let fds = fd.map(|fd| [fd.as_fd()]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(fds) = &fds {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    fn receive(&self) -> (ToDriver, Option<OwnedFd>) {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received =
            rustix::net::recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                fds.extend(passed);
            }
        }
        (ToDriver::decode(&bytes[..received]).unwrap().expect("a known message"), fds.pop())
    }

    /// VOLUME of the pod `shop/web` with this uid, and its OTLP.
    fn tell(&self, uid: &str, service_account: &str, [ctl, otlp]: &[OwnedFd; 2]) {
        self.send(&volume(uid, "web", service_account), Some(ctl));
        self.send(&ToGateway::Otlp { uid: uid.to_owned() }, Some(otlp));
    }

    fn attached(&self) -> (String, Option<String>) {
        match self.receive() {
            (ToDriver::Attached { uid, error }, None) => (uid, error),
            other => panic!("{other:?}"),
        }
    }
}

fn volume(uid: &str, pod: &str, service_account: &str) -> ToGateway {
    ToGateway::Volume(Volume {
        uid: uid.to_owned(),
        namespace: "shop".to_owned(),
        pod: pod.to_owned(),
        service_account: service_account.to_owned(),
        ports: vec![4317, 4318],
    })
}

fn unix(kind: SocketType) -> OwnedFd {
    rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

/// As the driver binds it.
fn bound(dir: &Path, kind: Kind, uid: &str) -> OwnedFd {
    let socket = unix(match kind {
        Kind::Ctl => SocketType::SEQPACKET,
        Kind::Otlp => SocketType::STREAM,
    });
    rustix::net::bind(&socket, &SocketAddrUnix::new(dir.join(bound_name(kind, uid))).unwrap()).unwrap();
    rustix::net::listen(&socket, 4).unwrap();
    socket
}

fn cookies(sockets: &[OwnedFd; 2]) -> Vec<u64> {
    let mut cookies: Vec<_> = sockets.iter().map(|socket| socket_cookie(socket).unwrap()).collect();
    cookies.sort_unstable();
    cookies
}

/// Scenario: a driver tells a pod, ends the connection, comes back, and finally unpublishes the pod.
/// Guarantees: HELLO carries the lock; the pod is served with the very sockets of the driver, and answered for; after the
/// second HELLO they are returned, and nothing is changed; the pod's end reaches the tenants, who is left is told, and all
/// descriptors are closed.
#[test]
fn a_pod_comes_the_driver_starts_again_the_pod_goes() {
    let ground = Ground::new();
    let sockets = ground.pod(UID);
    let (driver, returned) = ground.meet();
    assert!(returned.is_empty());
    driver.tell(UID, "default", &sockets);
    driver.send(&ToGateway::Ready, None);
    let cookies_in_order: Vec<_> = sockets.iter().map(|socket| socket_cookie(socket).unwrap()).collect();
    let mut told = [(); 3].map(|()| ground.next());
    told.sort();
    let change = format!("shop/web: None -> Some(\"{UID} default {cookies_in_order:?}\")");
    assert_eq!(told, ["Announced(true)".to_owned(), format!("Listed([{UID:?}])"), change]);
    assert_eq!(driver.attached(), (UID.to_owned(), None));
    let snapshot = ground.volumes.snapshot();
    let web = TenantName::parse("shop/web").unwrap();
    assert_eq!((snapshot.connected, snapshot.volumes, snapshot.connects), (true, 1, 1));
    assert_eq!(snapshot.pods[&web], PodState { uid: UID.into(), state: "served", superseded: 0 });

    drop(driver);
    ground.expect("Announced(false)");
    let (driver, returned) = ground.meet();
    assert_eq!(returned, cookies(&sockets));
    assert!(!ground.volumes.snapshot().connected, "before the list is complete");
    driver.tell(UID, "default", &sockets);
    driver.send(&ToGateway::Ready, None);
    assert_eq!(driver.attached(), (UID.to_owned(), None));
    for told in ["Disposed", "Disposed", "Announced(true)", &format!("Listed([{UID:?}])")] {
        ground.expect(told);
    }

    driver.send(&ToGateway::Unpublished { uid: UID.to_owned() }, None);
    for told in ["Disposed", "Disposed"] {
        ground.expect(told);
    }
    let mut told = [(); 2].map(|()| ground.next());
    told.sort();
    assert_eq!(told, ["Listed([])".to_owned(), format!("shop/web: Some({UID:?}) -> None")]);
}

/// Scenario: descriptors and names that are not a pod's, one after the other; then a good pod.
/// Guarantees: each is refused in words that name the pod and the cause, and counted; the good one is served.
#[test]
fn what_is_no_pods_socket_is_refused_in_words() {
    let ground = Ground::new();
    let sockets = ground.pod(UID);
    let other = ground.pod("other");
    let (driver, _) = ground.meet();
    let file: OwnedFd = File::open(ground.dir.path().join("lock")).unwrap().into();
    let refused = |message: &ToGateway, fd: Option<&OwnedFd>, why: &str| {
        driver.send(message, fd);
        let (_, error) = driver.attached();
        let error = error.unwrap_or_default();
        assert!(error.contains(why), "{error:?} must say {why:?}");
    };
    let good = volume(UID, "web", "default");
    refused(&good, None, "no descriptor came with ctl of pod 1d0c-1");
    refused(&good, Some(&file), "is no socket");
    refused(&good, Some(&unix(SocketType::SEQPACKET)), "does not listen");
    refused(&good, Some(&sockets[1]), "is not of type SOCK_SEQPACKET");
    refused(&good, Some(&other[0]), "was bound as");
    refused(&volume(UID, "Web", "default"), Some(&sockets[0]), "tenant name \"shop/Web\"");
    refused(&volume("a/b", "web", "default"), Some(&sockets[0]), "the uid is none");
    driver.send(&good, Some(&sockets[0]));
    refused(&ToGateway::Otlp { uid: UID.to_owned() }, Some(&sockets[0]), "is not of type SOCK_STREAM");
    driver.send(&ToGateway::Otlp { uid: UID.to_owned() }, Some(&sockets[1]));
    assert_eq!(driver.attached(), (UID.to_owned(), None));
    assert_eq!(ground.volumes.snapshot().refused, [2, 6, 0, 0, 0]);
}

/// Scenario: a pod that cannot be served, and one whose beginning panics.
/// Guarantees: the driver is told why, and the client goes on.
#[test]
fn who_cannot_be_served_is_answered() {
    let ground = Ground::new();
    let (driver, _) = ground.meet();
    for (uid, service_account, why) in [("u1", "unlucky", "the log is full"), ("u2", "panic", "the gateway failed")] {
        let sockets = ground.pod(uid);
        driver.tell(uid, service_account, &sockets);
        let (told, error) = driver.attached();
        assert!(told == uid && error.as_ref().is_some_and(|error| error.contains(why)), "{told} {error:?}");
        driver.send(&ToGateway::Unpublished { uid: uid.to_owned() }, None);
    }
    let sockets = ground.pod(UID);
    driver.tell(UID, "default", &sockets);
    assert_eq!(driver.attached(), (UID.to_owned(), None));
}

/// Scenario: a driver that refuses; one that sends what is no message; one that ends at once; one that speaks out of turn.
/// Guarantees: the client says what is wrong, and comes back, each time.
#[test]
fn it_connects_again_without_end() {
    let ground = Ground::new();
    let accept = || {
        let socket = rustix::net::accept_with(&ground.listener, SocketFlags::CLOEXEC).unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).unwrap();
        let driver = Driver { socket };
        assert!(matches!(driver.receive(), (ToDriver::Hello { .. }, Some(_))));
        driver
    };
    accept().send(&ToGateway::Refused { reason: "the lock is another one's".to_owned() }, None);
    ground.expect("Announced(false)");
    let trouble = ground.volumes.snapshot().trouble.expect("something is wrong");
    assert!(trouble.contains("it refused this gateway: the lock is another one's"), "{trouble}");
    accept().send_bytes(b"what", None);
    ground.expect("Announced(false)");
    drop(accept());
    ground.expect("Announced(false)");
    accept().send(&ToGateway::Ready, None);
    ground.expect("Announced(false)");
    let (driver, _) = ground.meet();
    driver.send(&ToGateway::Ready, None);
    ground.expect("Announced(true)");
    ground.expect("Listed([])");
    let snapshot = ground.volumes.snapshot();
    assert_eq!((snapshot.connected, snapshot.trouble, snapshot.connects), (true, None, 1));
}

/// Scenario: a driver tells as many pods as fill its socket before it reads anything.
/// Guarantees: neither end waits for the other: every pod is answered.
#[test]
fn a_long_list_is_read_while_answers_wait() {
    let ground = Ground::new();
    let (driver, _) = ground.meet();
    let pods: Vec<_> = (0..400).map(|number| format!("u{number}")).collect();
    for uid in &pods {
        let sockets = ground.pod(uid);
        driver.send(&volume(uid, uid, "default"), Some(&sockets[0]));
        driver.send(&ToGateway::Otlp { uid: uid.clone() }, Some(&sockets[1]));
    }
    driver.send(&ToGateway::Ready, None);
    let mut answered: Vec<_> = pods.iter().map(|_| driver.attached()).collect();
    answered.sort();
    let mut expected: Vec<_> = pods.into_iter().map(|uid| (uid, None)).collect();
    expected.sort();
    assert_eq!(answered, expected);
}
