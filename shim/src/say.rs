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

/// A number in words of digits.
pub(crate) fn decimal(mut number: u64) -> String {
    let mut digits = Vec::with_capacity(20);
    loop {
        digits.insert(0, char::from(b'0' + u8::try_from(number % 10).unwrap_or_default()));
        number /= 10;
        if number == 0 {
            return digits.into_iter().collect();
        }
    }
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
        _ => return ["error ", &decimal(u64::from(error.raw_os_error().unsigned_abs()))].concat(),
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: numbers of one and of the most digits.
    /// Guarantees: they read as `format!` would write them.
    #[test]
    fn numbers_read_as_usual() {
        for number in [0, 7, 10, 4317, u64::MAX] {
            assert_eq!(decimal(number), format!("{number}"));
        }
    }
}
