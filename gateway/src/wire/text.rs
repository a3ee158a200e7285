//! UTF-8, checked fast for what telemetry holds: short strings that are nearly always ASCII.

/// Whether `text` is UTF-8.
#[inline]
pub(crate) fn is_utf8(text: &[u8]) -> bool {
    simdutf8::basic::from_utf8(text).is_ok()
}

/// Whether all bytes are below 0x80. Made for short texts: words of eight bytes, the last of which overlaps the one before
/// it, and no call.
#[inline]
pub(crate) fn is_ascii(text: &[u8]) -> bool {
    const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
    let mut bits = 0;
    if let (Some(first), Some(last)) = (text.first_chunk::<8>(), text.last_chunk::<8>()) {
        bits |= u64::from_ne_bytes(*first) | u64::from_ne_bytes(*last);
        let mut rest = &text[8..];
        while let Some((word, after)) = rest.split_first_chunk::<8>() {
            bits |= u64::from_ne_bytes(*word);
            rest = after;
        }
    } else if let (Some(first), Some(last)) = (text.first_chunk::<4>(), text.last_chunk::<4>()) {
        bits |= u64::from(u32::from_ne_bytes(*first) | u32::from_ne_bytes(*last));
    } else {
        bits |= text.iter().fold(0, |bits, byte| bits | u64::from(*byte));
    }
    bits & HIGH_BITS == 0
}

/// Where to cut a long text at or before `at`, so that no character is torn. Assumes nothing about its validity.
pub(crate) fn boundary(text: &[u8], at: usize) -> usize {
    if at >= text.len() {
        return text.len();
    }
    // A character has at most three continuation bytes; more is not UTF-8, and the check of the piece says so.
    (at.saturating_sub(3)..=at).rev().find(|&at| text[at] & 0xc0 != 0x80).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: one byte above 0x7f at each position of texts of each length around the word sizes.
    /// Guarantees: it is never overlooked: what is not ASCII always reaches the full check.
    #[test]
    fn no_byte_is_overlooked() {
        for len in 0..100 {
            let text = vec![0x7f; len];
            assert!(is_ascii(&text));
            for at in 0..len {
                let mut bad = text.clone();
                bad[at] = 0x80;
                assert!(!is_ascii(&bad), "{at} of {len}");
                assert!(!is_utf8(&bad));
            }
        }
    }

    /// Scenario: a text of characters of one to four bytes is cut at every position.
    /// Guarantees: both halves are UTF-8 when the whole is, so a piecewise check has the same result.
    #[test]
    fn a_cut_never_tears_a_character() {
        let text = "aé€😀".repeat(4);
        for at in 0..=text.len() {
            let cut = boundary(text.as_bytes(), at);
            assert!(cut <= at && text.is_char_boundary(cut), "{cut} for {at}");
        }
        assert_eq!(boundary(&[0x80; 9], 5), 5, "makes progress on what is no UTF-8");
    }
}
