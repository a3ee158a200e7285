//! A disk whose fdatasync fails or hangs when the test says so: every call of the gateway passes through here first.
//!
//! `pillion-gated` puts a seccomp filter on itself, hands the descriptor that answers it over to the test, and becomes the
//! gateway. So the program under test is the real one, on a real filesystem; no library is preloaded, and nobody needs root.
//!
//! ```text
//! the log's files    pass, fail once, or wait until told        files whose name ends with .seg
//! anything else      passes
//! ```
//! Ends when dropped: before that, whoever waits is let through.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use crate::sys;

/// A gateway that never syncs is wrong.
const PATIENCE: Duration = Duration::from_secs(300);

/// EIO, as a broken disk answers.
const BROKEN: i32 = 5;

/// Where the calls arrive.
#[derive(Debug)]
pub struct SyncGate {
    socket: PathBuf,
    shared: Arc<Shared>,
    end: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    watch: Option<Arc<OwnedFd>>,
    is_closed: bool,
    waiting: Vec<u64>,
}

impl SyncGate {
    /// Open, so that everything passes; in `dir`, for the gateway that [`SyncGate::command`] becomes.
    pub fn open(dir: &Path) -> Self {
        let socket = dir.join("gate");
        let listener = UnixListener::bind(&socket).expect("the test's directory is writable");
        let shared: Arc<Shared> = Arc::default();
        let end = eventfd(0, EventfdFlags::CLOEXEC).expect("a descriptor");
        let for_thread = (shared.clone(), end.try_clone().expect("a descriptor"));
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("the gateway is started");
            let watch = receive(&stream).expect("it hands its descriptor over: see its stderr");
            serve(&for_thread.0, &Arc::new(watch), &for_thread.1);
        });
        Self { socket, shared, end, thread: Some(thread) }
    }

    /// `program` is `pillion-gated`. What follows is executed behind the gate.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg(&self.socket);
        command
    }

    /// From now on the log's syncs wait.
    pub fn close(&self) {
        self.shared.lock().is_closed = true;
    }

    /// Returns when one does.
    ///
    /// # Panics
    /// When none ever does.
    pub fn wait_for_one(&self) {
        let state = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(state, PATIENCE, |state| state.waiting.is_empty());
        assert!(!waited.unwrap_or_else(PoisonError::into_inner).0.waiting.is_empty(), "the log is never synced");
    }

    /// Those that wait fail, as on a broken disk; later ones pass.
    pub fn fail(&self) {
        self.shared.answer(Some(BROKEN));
    }

    /// Those that wait go on, and later ones pass.
    pub fn let_through(&self) {
        self.shared.answer(None);
    }
}

impl Drop for SyncGate {
    fn drop(&mut self) {
        self.let_through();
        let _ends_it = rustix::io::write(&self.end, &1_u64.to_ne_bytes());
        if std::thread::panicking() {
            // It may still wait for a gateway that was never started.
            return;
        }
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it does not panic");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, error: Option<i32>) {
        let mut state = self.lock();
        state.is_closed = false;
        let waiting = std::mem::take(&mut state.waiting);
        for (id, watch) in waiting.into_iter().zip(state.watch.iter().cycle()) {
            // Whose thread is gone needs no answer.
            let _ = sys::answer(watch, id, error);
        }
    }
}

/// Until the gate is dropped, or nobody is behind it any more.
fn serve(shared: &Shared, watch: &Arc<OwnedFd>, end: &OwnedFd) {
    shared.lock().watch = Some(watch.clone());
    loop {
        let mut fds = [PollFd::new(&**watch, PollFlags::IN), PollFd::new(end, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("waiting for calls: {error}"),
        }
        let [calls, ends] = fds.map(|fd| fd.revents());
        if !ends.is_empty() || calls.contains(PollFlags::HUP) {
            return;
        }
        if !calls.contains(PollFlags::IN) {
            continue;
        }
        // Whose thread died meanwhile is forgotten.
        let Ok(call) = sys::next_call(watch) else { continue };
        let mut state = shared.lock();
        if state.is_closed && is_of_the_log(call) {
            state.waiting.push(call.id);
            shared.changed.notify_all();
        } else {
            let _gone_is_fine = sys::answer(watch, call.id, None);
        }
    }
}

fn is_of_the_log(call: sys::Call) -> bool {
    let file = std::fs::read_link(format!("/proc/{}/fd/{}", call.thread, call.argument));
    file.is_ok_and(|path| path.extension().is_some_and(|extension| extension == "seg"))
}

/// The inside of `pillion-gated`: GATE PROGRAM ARGUMENT...
pub fn main(arguments: &[OsString]) -> io::Result<()> {
    let [gate, program, rest @ ..] = arguments else { return Err(io::Error::other("usage: GATE PROGRAM ARGUMENT...")) };
    let stream = UnixStream::connect(gate)?;
    let watch = sys::watch_fdatasync()?;
    let fds = [watch.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(&stream, &[IoSlice::new(&[1])], &mut control, SendFlags::empty())?;
    Err(Command::new(program).args(rest).exec())
}

fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fds.last().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
