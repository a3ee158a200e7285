//! Attribute values in words, each within a limit.

use std::borrow::Cow;
use std::fmt::Write as _;

use pillion_proto::otlp::common::{AnyValue, KeyValue, any_value::Value};

/// Of one resource, span or point.
pub(super) const ATTRIBUTES_MAX: usize = 32;

/// Of one value in words.
const VALUE_BYTES_MAX: usize = 200;

/// Values within values.
const DEPTH_MAX: usize = 4;

/// The attributes, each after `before`.
pub(super) fn attributes(all: &[KeyValue], before: &str) -> String {
    let mut out = String::new();
    for attribute in all.iter().take(ATTRIBUTES_MAX) {
        let value = attribute.value.as_ref().map_or_else(String::new, value);
        // Writing to a String cannot fail.
        let _ = write!(out, "{before}{}={value}", printable(&attribute.key, 120));
    }
    if all.len() > ATTRIBUTES_MAX {
        let _ = write!(out, "{before}... and {} more attributes", all.len() - ATTRIBUTES_MAX);
    }
    out
}

/// One value.
pub(super) fn value(any: &AnyValue) -> String {
    let mut out = String::new();
    put(&mut out, any, DEPTH_MAX);
    if out.len() <= VALUE_BYTES_MAX {
        return out;
    }
    cut(&out, VALUE_BYTES_MAX).to_owned() + "..."
}

fn put(out: &mut String, any: &AnyValue, depth: usize) {
    if out.len() > VALUE_BYTES_MAX {
        return;
    }
    // Writing to a String cannot fail.
    let _ = match &any.value {
        None => write!(out, "null"),
        Some(Value::StringValue(text)) => write!(out, "{}", quoted(text)),
        Some(Value::BoolValue(value)) => write!(out, "{value}"),
        Some(Value::IntValue(value)) => write!(out, "{value}"),
        Some(Value::DoubleValue(value)) => write!(out, "{value}"),
        Some(Value::BytesValue(bytes)) => write!(out, "{} bytes {}", bytes.len(), hex(&bytes[..bytes.len().min(32)])),
        Some(Value::ArrayValue(_) | Value::KvlistValue(_)) if depth == 0 => write!(out, "..."),
        Some(Value::ArrayValue(array)) => {
            out.push('[');
            for (number, value) in array.values.iter().take(ATTRIBUTES_MAX).enumerate() {
                out.push_str(if number > 0 { ", " } else { "" });
                put(out, value, depth - 1);
            }
            write!(out, "]")
        }
        Some(Value::KvlistValue(list)) => {
            out.push('{');
            for (number, pair) in list.values.iter().take(ATTRIBUTES_MAX).enumerate() {
                let _ = write!(out, "{}{}=", if number > 0 { ", " } else { "" }, printable(&pair.key, 120));
                if let Some(value) = &pair.value {
                    put(out, value, depth - 1);
                }
            }
            write!(out, "}}")
        }
        Some(other) => write!(out, "{}", printable(&format!("{other:?}"), VALUE_BYTES_MAX)),
    };
}

/// Text between quotes, cut, without anything that a terminal would obey.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", printable(text, VALUE_BYTES_MAX))
}

/// Text cut to so many bytes, every control character as its escape.
pub fn printable(text: &str, bytes_max: usize) -> Cow<'_, str> {
    let is_plain = |c: char| !c.is_control() && !is_direction(c);
    let short = cut(text, bytes_max);
    if short.len() == text.len() && text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    for c in short.chars() {
        if is_plain(c) { out.push(c) } else { out.extend(c.escape_default()) }
    }
    if short.len() < text.len() {
        out.push_str("...");
    }
    Cow::Owned(out)
}

/// Characters that turn the text around them, so that it reads as something else.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Bytes as people know ids.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(64).map(|byte| format!("{byte:02x}")).collect()
}
