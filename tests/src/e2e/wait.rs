//! Waiting for a condition that nothing announces: asked again and again, with a deadline that is for failures.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Between two questions. A question costs the API server a millisecond or two.
const BETWEEN: Duration = Duration::from_millis(60);

/// Asks until there is an answer. An error means "not yet", and is told when `patience` is over.
pub fn until<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("waited {} s until {what}", patience.as_secs()));
            }
            Err(_) => std::thread::sleep(BETWEEN),
        }
    }
}
