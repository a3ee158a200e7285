//! Ctrl-C and SIGTERM end a run early, and it leaves nothing behind.
//!
//! ```text
//! supervisor   the command as it was started: takes the signals
//!    | standard input of what it starts: the signal's number in a byte; its end: the supervisor was killed
//! unshare      in a process group of its own: what a terminal sends reaches neither it nor any agent
//!    |
//! the run      process 1 of its namespaces: every wait looks at `check`, and all that was made ends by being dropped
//! ```
//!
//! The second signal ends everything at once. What was asked for is one fact about the process, as a signal is: so it is a static.

use std::io::{Read, Write, stderr, stdin};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// The signal that was sent; 0: none.
static SENT: AtomicU8 = AtomicU8::new(0);

const INT: u8 = 2;
const TERM: u8 = 15;

/// Exit status of what a signal ended, as a shell tells it, above the signal's number.
const BY_SIGNAL: u8 = 128;

/// An error, once the run is to end.
pub fn check() -> Result<()> {
    match asked() {
        None => Ok(()),
        Some(status) => bail!("ended by {}", name(status - BY_SIGNAL)),
    }
}

/// The exit status, once the run is to end.
pub(crate) fn asked() -> Option<u8> {
    let sent = SENT.load(Ordering::Relaxed);
    (sent > 0).then_some(BY_SIGNAL + sent)
}

/// Of the run: hears from now on what the supervisor says, and what it is sent itself.
pub(crate) fn listen() -> Result<()> {
    std::thread::Builder::new().name("supervised".into()).stack_size(64 << 10).spawn(|| {
        let mut said = [0];
        // The end of the supervisor is that of the run.
        let sent = stdin().read(&mut said).map_or(0, |_| said[0]);
        SENT.store(if sent == INT { INT } else { TERM }, Ordering::Relaxed);
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut int, mut term) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                let sent = tokio::select! { _ = int.recv() => INT, _ = term.recv() => TERM };
                SENT.store(sent, Ordering::Relaxed);
            }
        });
    })?;
    Ok(())
}

/// Starts the run and waits for its end; the first signal ends it well, the second at once.
pub(crate) fn supervise(command: &mut Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut ended = signal(SignalKind::child())?;
        let what = command.get_program().display().to_string();
        let started = command.stdin(Stdio::piped()).process_group(0).spawn();
        let mut child = started.with_context(|| format!("starting `{what}`"))?;
        let mut run = child.stdin.take().context("piped")?;
        let mut is_asked = false;
        loop {
            let sent = tokio::select! {
                _ = int.recv() => INT,
                _ = term.recv() => TERM,
                _ = ended.recv() => match child.try_wait()? {
                    Some(status) => return Ok(exit(status)),
                    None => continue,
                },
            };
            if is_asked {
                child.kill().context("ending the run at once")?;
                child.wait()?;
                return Ok((BY_SIGNAL + sent).into());
            }
            is_asked = true;
            // Whoever cannot see it, or has ended, misses nothing.
            drop(writeln!(
                stderr(),
                "\r{}: the run is ending; once more ends it at once, and leaves its files",
                name(sent)
            ));
            drop(run.write_all(&[sent]));
        }
    })
}

fn exit(status: ExitStatus) -> ExitCode {
    let by_signal = |signal: i32| u8::try_from(signal).map(|signal| BY_SIGNAL + (signal & 0x7f)).ok();
    let code = status.code().map_or_else(|| status.signal().and_then(by_signal), |code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

fn name(signal: u8) -> &'static str {
    if signal == INT { "SIGINT" } else { "SIGTERM" }
}
