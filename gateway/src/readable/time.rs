//! Times in words: an instant in UTC, a length with its unit, an age.

const SECOND: u64 = 1_000_000_000;

/// Nanoseconds since 1970 as RFC 3339 in UTC; `-` for none.
pub fn instant(unix_nano: u64) -> String {
    if unix_nano == 0 {
        return "-".to_owned();
    }
    let (seconds, nanos) = (unix_nano / SECOND, unix_nano % SECOND);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// The Gregorian date of a day since 1970. Years begin in March here, so that a leap day is the last day of one.
fn date(days: u64) -> (u64, u64, u64) {
    const OF_400_YEARS: u64 = 146_097;
    // 1 March 0000 was 719,468 days before 1970.
    let days = days + 719_468;
    let (era, of_era) = (days / OF_400_YEARS, days % OF_400_YEARS);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// From one time to another, with three digits.
pub(super) fn between(from_nano: u64, to_nano: u64) -> String {
    let Some(length) = to_nano.checked_sub(from_nano) else {
        return format!("-{}", between(to_nano, from_nano));
    };
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let length = length as f64;
    match length {
        length if length < 1e3 => format!("{length} ns"),
        length if length < 1e6 => format!("{:.1} us", length / 1e3),
        length if length < 1e9 => format!("{:.1} ms", length / 1e6),
        length => format!("{:.2} s", length / 1e9),
    }
}

/// Milliseconds as the two largest units that a person says.
pub fn age(millis: u64) -> String {
    let seconds = millis / 1_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..172_800 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}
