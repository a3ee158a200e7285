//! A patch as insertions into text, in block or flow style as the text around them is.

use std::ops::Range;

use json_patch::Patch;
use serde_json::{Map, Value, json};

use super::Flaw;
use super::tree::{Entry, Kind, Node, Step, Tree};
use crate::inject::STATUS;

/// Bytes of the stream and what comes in their place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Edit {
    range: Range<usize>,
    text: String,
}

/// The stream with its edits. Those at one place keep their order.
pub(super) fn apply(stream: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| (edit.range.start, edit.range.end));
    let mut out = String::with_capacity(stream.len() + edits.iter().map(|edit| edit.text.len()).sum::<usize>());
    let mut at = 0;
    for edit in edits {
        out.push_str(&stream[at..edit.range.start.max(at)]);
        out.push_str(&edit.text);
        at = edit.range.end.max(at);
    }
    out.push_str(&stream[at..]);
    out
}

/// Where a template is.
pub(super) struct Place<'p> {
    /// The whole of the text.
    pub(super) stream: &'p str,
    /// The document's bytes in it.
    pub(super) document: Range<usize>,
    /// The way from the document's root.
    pub(super) path: &'p [Step],
}

/// The edits that make `pod`, which stands at `template`, what the patch makes of it. Checked by parsing the result.
pub(super) fn template(place: &Place<'_>, template: &Node<'_>, pod: &Value, patch: &Patch) -> Result<Vec<Edit>, Flaw> {
    let unwritable = |message: &str| Flaw {
        at: template.start,
        message: format!("the shim cannot be written here: {message}"),
        help: "rewrite the object in block style, for example with kubectl create --dry-run=client -o yaml",
    };
    let mut wanted = pod.clone();
    json_patch::patch(&mut wanted, patch).map_err(|error| unwritable(&error.to_string()))?;
    let spec = template.child("spec").ok_or_else(|| unwritable("spec is missing"))?;
    let writer = Writer { stream: place.stream };
    let mut edits = Vec::new();
    // The patch's own values: the first of initContainers, the last of volumes, the status.
    let container = &wanted["spec"]["initContainers"][0];
    let volume = wanted["spec"]["volumes"].as_array().and_then(|list| list.last()).unwrap_or(&Value::Null);
    writer.list(spec, "initContainers", container, End::Front, &mut edits);
    writer.list(spec, "volumes", volume, End::Back, &mut edits);
    writer.status(template, &wanted["metadata"]["annotations"][STATUS], &mut edits);

    let start = place.document.start;
    let moved = edits
        .iter()
        .map(|edit| Edit { range: edit.range.start - start..edit.range.end - start, text: edit.text.clone() });
    let after = apply(&place.stream[place.document.clone()], moved.collect());
    let parsed = Tree::parse(&after, 0..after.len()).map_err(|flaw| unwritable(&flaw.message))?;
    let found = parsed.as_ref().and_then(|tree| tree.root.descend(place.path)).map(Node::to_json);
    if found == Some(Ok(wanted)) { Ok(edits) } else { Err(unwritable("its surroundings are not understood")) }
}

enum End {
    Front,
    Back,
}

struct Writer<'s> {
    stream: &'s str,
}

impl Writer<'_> {
    /// One more item of a list that may be absent.
    fn list(&self, parent: &Node<'_>, key: &str, item: &Value, end: End, edits: &mut Vec<Edit>) {
        let Some(entry) = parent.entry(key) else {
            return edits.push(self.new_entry(parent, key, &json!([item])));
        };
        let Kind::Sequence { items, is_flow } = &entry.value.kind else {
            return edits.push(self.fill(entry, &json!([item])));
        };
        edits.push(match (items.first(), items.last(), end, is_flow) {
            (Some(_), _, End::Front, true) => insert(entry.value.start + 1, format!("{item}, ")),
            (_, Some(last), End::Back, true) => insert(last.end, format!(", {item}")),
            (None, ..) | (_, None, ..) => insert(entry.value.start + 1, item.to_string()),
            (Some(first), _, End::Front, false) => self.lines_at(self.hyphen(first), &block(&json!([item]))),
            (Some(first), Some(last), End::Back, false) => {
                self.lines_after(end_of(last), self.column(self.hyphen(first)), &block(&json!([item])))
            }
        });
    }

    fn status(&self, template: &Node<'_>, status: &Value, edits: &mut Vec<Edit>) {
        let annotations = json!({STATUS: status});
        edits.push(match template.entry("metadata") {
            None => self.new_entry(template, "metadata", &json!({"annotations": annotations})),
            Some(metadata) if metadata.value.is_null() => self.fill(metadata, &json!({"annotations": annotations})),
            Some(metadata) => match metadata.value.entry("annotations") {
                None => self.new_entry(&metadata.value, "annotations", &annotations),
                Some(entry) if entry.value.is_null() => self.fill(entry, &annotations),
                Some(entry) => match entry.value.entry(STATUS) {
                    None => self.new_entry(&entry.value, STATUS, status),
                    Some(old) => self.fill(old, status),
                },
            },
        });
    }

    /// The first entry of a mapping, which has others.
    fn new_entry(&self, mapping: &Node<'_>, key: &str, value: &Value) -> Edit {
        match (&mapping.kind, mapping.entries().first()) {
            (Kind::Mapping { is_flow: false, .. }, Some(first)) => {
                let entry = Map::from_iter([(key.to_owned(), value.clone())]);
                self.lines_at(first.key_start, &block(&Value::Object(entry)))
            }
            (_, first) => {
                let comma = if first.is_some() { ", " } else { "" };
                insert(mapping.start + 1, format!("{}: {value}{comma}", Value::from(key)))
            }
        }
    }

    /// In the place of a value that is null, or an old status.
    fn fill(&self, entry: &Entry<'_>, value: &Value) -> Edit {
        if entry.value.end > entry.value.start {
            // In quotes where it was, or JSON would be none any more.
            let is_plain = matches!(entry.value.kind, Kind::Scalar { is_plain: true, .. });
            let text = if is_plain && value.is_string() { inline(value) } else { value.to_string() };
            return Edit { range: entry.value.start..entry.value.end, text };
        }
        let colon = self.stream[entry.key_end..].find(':').map_or(entry.key_end, |colon| entry.key_end + colon + 1);
        insert(colon, format!(" {value}"))
    }

    /// The hyphen before an item of a block sequence.
    fn hyphen(&self, item: &Node<'_>) -> usize {
        self.stream[..item.start].rfind('-').unwrap_or(item.start)
    }

    /// Lines before what stands at `at`, in its column; before the comments above it as well.
    fn lines_at(&self, at: usize, lines: &[String]) -> Edit {
        let column = self.column(at);
        let indent = " ".repeat(column);
        let mut line_start = at - self.stream[..at].rfind('\n').map_or(at, |end| at - end - 1);
        if !self.stream[line_start..at].trim().is_empty() {
            // It follows a hyphen on its line.
            return insert(at, lines.iter().map(|line| format!("{line}\n{indent}")).collect());
        }
        while let Some(above) = self.stream[..line_start.saturating_sub(1)].rfind('\n').map(|end| end + 1) {
            if !self.stream[above..line_start].trim_start().starts_with('#') {
                break;
            }
            line_start = above;
        }
        insert(line_start, lines.iter().map(|line| format!("{indent}{line}\n")).collect())
    }

    /// Lines after the line that ends something.
    fn lines_after(&self, end: usize, column: usize, lines: &[String]) -> Edit {
        let indent = " ".repeat(column);
        let text: String = lines.iter().map(|line| format!("{indent}{line}\n")).collect();
        // A block scalar ends where the next line's text begins.
        let before_blanks = self.stream[..end].trim_end_matches(' ');
        if before_blanks.ends_with('\n') {
            return insert(before_blanks.len(), text);
        }
        match self.stream[end..].find('\n') {
            Some(rest) => insert(end + rest + 1, text),
            None => insert(self.stream.len(), format!("\n{text}")),
        }
    }

    /// In characters, as YAML counts them.
    fn column(&self, at: usize) -> usize {
        let line_start = self.stream[..at].rfind('\n').map_or(0, |end| end + 1);
        self.stream[line_start..at].chars().count()
    }
}

fn insert(at: usize, text: String) -> Edit {
    Edit { range: at..at, text }
}

/// Behind the last byte of a node; a block collection ends where its last part does.
fn end_of(node: &Node<'_>) -> usize {
    match &node.kind {
        Kind::Sequence { items, is_flow: false } => items.last().map_or(node.end, end_of),
        Kind::Mapping { entries, is_flow: false } => entries.last().map_or(node.end, |entry| end_of(&entry.value)),
        _ => node.end,
    }
}

/// A value as lines of block style, a `name` first.
fn block(value: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    match value {
        Value::Object(map) => {
            let named = map.iter().filter(|(key, _)| *key == "name");
            for (key, value) in named.chain(map.iter().filter(|(key, _)| *key != "name")) {
                match value {
                    Value::Object(map) if !map.is_empty() => {
                        lines.push(format!("{key}:"));
                        lines.extend(block(value).into_iter().map(|line| format!("  {line}")));
                    }
                    Value::Array(list) if !list.is_empty() => {
                        lines.push(format!("{key}:"));
                        lines.extend(block(value));
                    }
                    scalar => lines.push(format!("{key}: {}", inline(scalar))),
                }
            }
        }
        Value::Array(list) => {
            for item in list {
                let inner = block(item);
                let mut marks = std::iter::once("- ").chain(std::iter::repeat("  "));
                lines.extend(inner.into_iter().map(|line| format!("{}{line}", marks.next().unwrap_or_default())));
            }
        }
        scalar => lines.push(inline(scalar)),
    }
    lines
}

/// A scalar: without quotes where no reader of YAML can take the text for anything else.
fn inline(value: &Value) -> String {
    let is_plain = |text: &&str| {
        let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
        let letters = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/.:-_@".contains(&byte));
        let is_time = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
        begins && letters && !is_time && !text.ends_with(':') && super::scalar::resolve(text).is_string()
    };
    match value.as_str().filter(is_plain) {
        Some(text) => text.to_owned(),
        None => value.to_string(),
    }
}
