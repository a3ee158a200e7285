//! Quantities as people write them: `4MiB`, `64KiB`, `1500`, `72h`, `1m30s`.
//!
//! Exact: no fractions, no rounding, and nothing that means two things in two tools (`4M` is refused).

use std::time::Duration;

/// Ten years: longer than any retention, and far from where adding it to a clock overflows.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

const SIZES: [(&str, u64); 14] = [
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    // Kubernetes' spelling of the same.
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
];

const TIMES_NS: [(&str, u64); 6] = [
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Bytes. The error says what is accepted.
pub(super) fn size(text: &str) -> Result<u64, &'static str> {
    const ACCEPTED: &str =
        "not a size: write bytes or a whole number with KiB, MiB, GiB, TiB, kB, MB, GB or TB, for example 64MiB";
    let (number, unit) = number_and_unit(text).ok_or(ACCEPTED)?;
    let factor = match unit.trim_start() {
        "" => 1,
        unit => SIZES.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor).ok_or(ACCEPTED)?,
    };
    number.checked_mul(factor).ok_or("larger than 16 EiB")
}

/// A duration, as Go writes it: one or more of `NUMBER UNIT`.
pub(super) fn duration(text: &str) -> Result<Duration, &'static str> {
    const ACCEPTED: &str = "not a duration: write a whole number with us, ms, s, m, h or d, for example 30s or 1h30m";
    const LONGEST: &str = "longer than ten years";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    loop {
        let (number, tail) = number_and_unit(rest).ok_or(ACCEPTED)?;
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(end);
        let factor = TIMES_NS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor).ok_or(ACCEPTED)?;
        let nanos = number.checked_mul(factor).ok_or(LONGEST)?;
        total = total.checked_add(Duration::from_nanos(nanos)).ok_or(LONGEST)?;
        if total > DURATION_MAX {
            return Err(LONGEST);
        }
        if next.is_empty() {
            return Ok(total);
        }
        rest = next;
    }
}

/// A whole number from 0; underscores between digits are for the eye.
pub(super) fn count(text: &str) -> Result<u64, &'static str> {
    let digits = text.replace('_', "");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("not a whole number");
    }
    digits.parse().map_err(|_| "too large a number")
}

/// A size as people write it, in the largest unit that shows it exactly.
pub(super) fn show_size(bytes: u64) -> String {
    let unit = ["TiB", "GiB", "MiB", "KiB"].into_iter().zip([1u64 << 40, 1 << 30, 1 << 20, 1 << 10]);
    match unit.into_iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor)) {
        Some((name, factor)) => format!("{}{name}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// Leading digits, and what follows them.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((count(digits).ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: sizes in every unit, and what looks like one.
    /// Guarantees: decimal and binary units are told apart, and whatever is ambiguous or fractional is refused.
    #[test]
    fn sizes_are_exact() {
        for (text, bytes) in [
            ("0", 0),
            ("1500", 1_500),
            ("65_536", 65_536),
            ("7B", 7),
            ("2kB", 2_000),
            ("2KB", 2_000),
            ("2MB", 2_000_000),
            ("2GB", 2_000_000_000),
            ("2TB", 2_000_000_000_000),
            ("64KiB", 65_536),
            ("4MiB", 4_194_304),
            ("4 MiB", 4_194_304),
            ("10GiB", 10_737_418_240),
            ("1TiB", 1_099_511_627_776),
            ("64Ki", 65_536),
            ("4Mi", 4_194_304),
            ("1Gi", 1_073_741_824),
            ("1Ti", 1_099_511_627_776),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "MiB", "4M", "4mib", "1.5GiB", "-1", "4MiB/s", "0x10", "٤", "18446744073709551616", "20000000TiB"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }

    /// Scenario: durations in every unit, compound ones, and what looks like one.
    /// Guarantees: a number without a unit is refused (seconds to one reader are milliseconds to another), and so is
    /// what would overflow a clock.
    #[test]
    fn durations_need_a_unit() {
        for (text, millis) in [
            ("0", 0),
            ("5000us", 5),
            ("500ms", 500),
            ("1s", 1_000),
            ("2m", 120_000),
            ("72h", 259_200_000),
            ("1d", 86_400_000),
            ("1h30m", 5_400_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "10", "s", "1.5s", "-1s", "1h30", "1 hour", "99999999999h", "3651d", "18446744073709551615s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    /// Scenario: sizes with and without an exact unit.
    /// Guarantees: what an error shows can be written back into the file as it is.
    #[test]
    fn a_shown_size_reads_back() {
        for (bytes, text) in [(0, "0B"), (1_500, "1500B"), (65_536, "64KiB"), (1 << 30, "1GiB"), (3 << 19, "1536KiB")] {
            assert_eq!(show_size(bytes), text);
            assert_eq!(size(text), Ok(bytes));
        }
    }
}
