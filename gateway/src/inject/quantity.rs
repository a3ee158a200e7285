//! Kubernetes quantities, as far as the quality of service of a pod depends on them: above zero, and equal.
//!
//! Own code: the crates for it bring the types of the whole API with them, for two comparisons.

use serde_json::Value;

/// In billionths, the smallest step that Kubernetes keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Quantity(i128);

const NANOS: i128 = 1_000_000_000;

impl Quantity {
    /// `None`: no quantity, or one that is larger than any machine.
    pub(super) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    pub(super) fn is_positive(self) -> bool {
        self.0 > 0
    }

    fn parse(text: &str) -> Option<Self> {
        let (sign, text) = match text.as_bytes().first()? {
            b'-' => (-1, &text[1..]),
            b'+' => (1, &text[1..]),
            _ => (1, text),
        };
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 24 {
            return None;
        }
        let mantissa: i128 = [whole, fraction].concat().parse().ok()?;
        let (base, exponent) = scale(suffix)?;
        let multiplied = mantissa.checked_mul(base)?.checked_mul(NANOS)?;
        let shift = exponent - i32::try_from(fraction.len()).ok()?;
        let power = 10i128.checked_pow(shift.unsigned_abs())?;
        // What is finer than a billionth is rounded up, as Kubernetes does.
        let nanos = if shift >= 0 { multiplied.checked_mul(power)? } else { (multiplied + power - 1) / power };
        Some(Self(sign * nanos))
    }
}

/// A factor, and a power of ten.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    let binary = |power: u32| Some((1024i128.pow(power), 0));
    match suffix {
        "n" => Some((1, -9)),
        "u" => Some((1, -6)),
        "m" => Some((1, -3)),
        "" => Some((1, 0)),
        "k" => Some((1, 3)),
        "M" => Some((1, 6)),
        "G" => Some((1, 9)),
        "T" => Some((1, 12)),
        "P" => Some((1, 15)),
        "E" => Some((1, 18)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
            (-18..=18).contains(&exponent).then_some((1, exponent))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantity(text: &str) -> Option<Quantity> {
        Quantity::of(&text.into())
    }

    /// Scenario: one amount in the spellings that people use.
    /// Guarantees: they are equal, so that a Guaranteed pod is recognised however it is written.
    #[test]
    fn spellings_of_one_amount_are_equal() {
        for (one, other) in [
            ("1", "1000m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1Gi", "1024Mi"),
            ("1k", "1e3"),
            ("1E3", "1000"),
            ("1E", "1e18"),
            ("1.5Gi", "1536Mi"),
            ("+2", "2"),
            ("2.", "2"),
            ("100n", "0.1u"),
            ("0.1n", "1n"),
        ] {
            assert!(quantity(one).is_some(), "{one}");
            assert_eq!(quantity(one), quantity(other), "{one} {other}");
        }
        assert_eq!(Quantity::of(&serde_json::json!(0.5)), quantity("500m"));
        assert_ne!(quantity("1M"), quantity("1Mi"));
        assert!(
            !quantity("0").expect("a quantity").is_positive() && !quantity("-1").expect("a quantity").is_positive()
        );
    }

    /// Scenario: texts that are no quantity, and numbers beyond every machine.
    /// Guarantees: none is a quantity; nothing overflows.
    #[test]
    fn what_is_no_quantity_is_none() {
        for text in [
            "",
            "m",
            "1x",
            "1 Gi",
            "--1",
            "1..2",
            "1.2.3",
            "1e",
            "1e99999999999",
            "1e-19",
            "9".repeat(99).as_str(),
            "é",
        ] {
            assert_eq!(quantity(text), None, "{text}");
        }
        assert_eq!(Quantity::of(&Value::Null), None);
        assert_eq!(quantity("999999999999999999999999Ei"), None);
    }
}
