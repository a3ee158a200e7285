//! Standard output, whose reader may be gone: `pillion queue ls | head` is no mistake.

use std::fmt::Display;
use std::io::{self, Write as _};

/// Prints one line.
pub(super) fn line(text: impl Display) {
    print(&format!("{text}\n"));
}

/// Prints the text as it is. What nobody reads, or a full disk does not take, is not printed; the exit status stands for itself.
pub(super) fn print(text: &str) {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => eprintln!("error: stdout: {error}"),
        _ => {}
    }
}
