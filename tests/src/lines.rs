//! Waiting for what a process says. The only clock is the deadline after which a silent process is a failed test.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A process that says nothing for this long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// The lines of a stream, read by a thread of their own so that the process never blocks on a full pipe.
#[derive(Debug, Clone)]
pub struct Lines {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    unread: VecDeque<String>,
    all: Vec<String>,
    ended: bool,
}

impl Lines {
    /// Reads `stream` to its end.
    pub fn of(stream: impl Read + Send + 'static) -> Self {
        let shared: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let for_thread = shared.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                let mut state = for_thread.0.lock().unwrap_or_else(PoisonError::into_inner);
                state.all.push(line.clone());
                state.unread.push_back(line);
                for_thread.1.notify_all();
            }
            for_thread.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            for_thread.1.notify_all();
        });
        Self { shared }
    }

    /// The next line that holds `text`; lines before it are passed over.
    ///
    /// # Panics
    /// When the stream ends or stays silent for too long, with everything it said.
    pub fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + SILENCE_MAX;
        let mut state = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            while let Some(line) = state.unread.pop_front() {
                if line.contains(text) {
                    return line;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!state.ended, "the process ended before it said {text:?}; it said:\n{}", state.all.join("\n"));
            assert!(!left.is_zero(), "the process did not say {text:?}; it said:\n{}", state.all.join("\n"));
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Passes over what was said before now.
    pub fn skip(&self) {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).unread.clear();
    }

    /// Everything so far.
    pub fn all(&self) -> String {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).all.join("\n")
    }
}
