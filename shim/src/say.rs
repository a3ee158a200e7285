//! One line on stderr for each event, put together from pieces.
//!
//! Never fails, never formats: the machinery of `format!` would be the largest part of the program.

use std::io::Write as _;
use std::process::ExitCode;

use rustix::io::Errno;

/// Writes one line, in one piece. Control characters in it (it may quote the gateway) become spaces.
pub(crate) fn say(parts: &[&str]) {
    let mut line = b"pillion-shim: ".to_vec();
    for part in parts {
        line.extend(part.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }));
    }
    line.push(b'\n');
    // A closed stderr must not end the shim.
    let _ = std::io::stderr().write_all(&line);
}

/// Says it unless the same error was the last: once for each cause, not once for each try.
pub(crate) fn complain(last: &mut Option<Errno>, error: Errno, parts: &[&str]) {
    if last.replace(error) != Some(error) {
        say(parts);
    }
}

/// What the user asked to see.
pub(crate) fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// An error of the kernel in words, for those that are to be expected.
pub(crate) fn why(error: Errno) -> String {
    let words = match error {
        Errno::ACCESS => "permission denied",
        Errno::ADDRINUSE => "address in use",
        Errno::ADDRNOTAVAIL => "address not available",
        Errno::AGAIN => "queue full",
        Errno::CONNREFUSED => "nobody listens there",
        Errno::MFILE | Errno::NFILE => "too many open files",
        Errno::NOENT => "no such file",
        Errno::NOTDIR => "not a directory",
        Errno::PERM => "operation not permitted",
        Errno::TOOMANYREFS => "too many descriptors in flight",
        _ => return ["error ", &error.raw_os_error().to_string()].concat(),
    };
    words.to_owned()
}
