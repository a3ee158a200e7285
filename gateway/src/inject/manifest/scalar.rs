//! What a plain YAML scalar means to kubectl, which reads YAML 1.1: `yes` is true, and `0644` is octal.

use serde_json::{Number, Value};

/// The value of a scalar that is written without quotes.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => true.into(),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => false.into(),
        _ => number(text).map_or_else(|| text.into(), Value::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    let first = text.as_bytes().first()?;
    if !(first.is_ascii_digit() || matches!(first, b'+' | b'-' | b'.')) {
        return None;
    }
    let plain = text.replace('_', "");
    integer(&plain).or_else(|| float(&plain))
}

fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        Some("0o" | "0O") => (8, &digits[2..]),
        Some("0b" | "0B") => (2, &digits[2..]),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    let value = u64::from_str_radix(digits, radix).ok()?;
    if negative { 0i64.checked_sub_unsigned(value).map(Number::from) } else { Some(value.into()) }
}

fn float(text: &str) -> Option<Number> {
    let is_float = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E'));
    let value = is_float.then(|| text.parse::<f64>().ok())??;
    // As kubectl prints it: a whole number has no point.
    if value.fract() == 0.0 && value.abs() < 9e15 {
        return Number::from_i128(format!("{value:.0}").parse().ok()?);
    }
    Number::from_f64(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Scenario: the scalars whose meaning differs between YAML 1.1 and 1.2, and texts that only look like numbers.
    /// Guarantees: each means what kubectl takes it for; above all, file modes are octal.
    #[test]
    fn scalars_mean_what_kubectl_takes_them_for() {
        for (text, value) in [
            ("0644", json!(420)),
            ("0o644", json!(420)),
            ("0x1F", json!(31)),
            ("0b11", json!(3)),
            ("1_000", json!(1000)),
            ("-5", json!(-5)),
            ("+5", json!(5)),
            ("0", json!(0)),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000)),
            (".5", json!(0.5)),
            ("yes", json!(true)),
            ("off", json!(false)),
            ("y", json!(true)),
            ("~", json!(null)),
            ("", json!(null)),
            ("18446744073709551615", json!(u64::MAX)),
            ("099", json!(99)),
            ("100m", json!("100m")),
            ("1.2.3", json!("1.2.3")),
            ("10.0.0.1", json!("10.0.0.1")),
            ("2024-01-01", json!("2024-01-01")),
            ("0x", json!("0x")),
            ("-", json!("-")),
            ("1e", json!("1e")),
            ("0é", json!("0é")),
            ("enabled", json!("enabled")),
        ] {
            assert_eq!(resolve(text), value, "{text}");
        }
    }
}
