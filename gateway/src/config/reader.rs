//! Walking the tree: a [`Value`] knows where it stands and how to say what is wrong with it; a [`Section`] knows which of its
//! keys nobody asked for.
//!
//! Nothing here stops at a mistake: what cannot be read is reported and becomes `None`, and the caller goes on with the default, so
//! that one run finds everything. Values are quoted as the file has them, before variables are put in.

use std::cell::RefCell;
use std::fmt::Display;
use std::time::Duration;

use super::Environment;
use super::error::{ConfigError, nearest};
use super::expand::{self, Piece};
use super::tree::{Entry, Kind, Node, Place};
use super::unit;

/// Beyond this nobody reads on.
const ERRORS_MAX: usize = 200;
/// How much of a wrong value is quoted.
const QUOTED_MAX: usize = 60;

/// What all values of one file share.
pub(super) struct Reader<'t> {
    file: &'t str,
    env: Environment<'t>,
    errors: RefCell<Vec<ConfigError>>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(file: &'t str, env: Environment<'t>) -> Self {
        Self { file, env, errors: RefCell::new(Vec::new()) }
    }

    pub(super) fn report(&self, at: Place, path: &str, message: String, help: &str) {
        let mut errors = self.errors.borrow_mut();
        if errors.len() < ERRORS_MAX {
            errors.push(ConfigError {
                file: self.file.to_owned(),
                line: at.line,
                column: at.column,
                path: path.to_owned(),
                message,
                help: help.to_owned(),
            });
        }
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.borrow().is_empty()
    }

    /// In the order of the file.
    pub(super) fn into_errors(self) -> Vec<ConfigError> {
        let mut errors = self.errors.into_inner();
        errors.sort();
        errors
    }
}

/// A value of the file, with its place and its dotted path.
#[derive(Clone)]
pub(super) struct Value<'r> {
    reader: &'r Reader<'r>,
    node: &'r Node<'r>,
    /// Of the value; of its key where it is a mapping, since that begins on the line after.
    at: Place,
    path: String,
}

/// A member of a mapping whose keys the user chooses.
pub(super) struct Member<'r> {
    pub(super) key: &'r str,
    pub(super) key_at: Place,
    pub(super) value: Value<'r>,
}

impl<'r> Value<'r> {
    pub(super) fn root(reader: &'r Reader<'r>, node: &'r Node<'r>) -> Self {
        Self { reader, node, at: node.at, path: String::new() }
    }

    /// Reports a mistake at this value.
    pub(super) fn fail(&self, message: impl Display, help: &str) {
        self.reader.report(self.at, &self.path, message.to_string(), help);
    }

    /// Reports a mistake at the key of one of its members.
    pub(super) fn fail_at(&self, at: Place, key: &str, message: impl Display, help: &str) {
        self.reader.report(at, &self.child_path(key), message.to_string(), help);
    }

    pub(super) fn is_mapping(&self) -> bool {
        matches!(self.node.kind, Kind::Mapping(_))
    }

    /// Reads a mapping of known keys; a key that `read` does not ask for is reported. Nothing at all is an empty mapping.
    pub(super) fn section<T>(&self, read: impl FnOnce(&mut Section<'r>) -> T) -> Option<T> {
        let entries = self.entries()?;
        let mut section = Section { value: self.clone(), entries, known: Vec::new() };
        let out = read(&mut section);
        section.report_unknown();
        Some(out)
    }

    /// Reads a mapping whose keys the user chooses.
    pub(super) fn members(&self) -> Vec<Member<'r>> {
        let members = self.entries().unwrap_or_default().iter();
        members.map(|entry| Member { key: &entry.key, key_at: entry.key_at, value: self.child(entry) }).collect()
    }

    /// Reads a list.
    pub(super) fn items(&self) -> Option<Vec<Value<'r>>> {
        let Kind::Sequence(nodes) = &self.node.kind else {
            self.fail(format!("expected a list, found {}", self.node_kind()), "write [one] or [one, two]");
            return None;
        };
        let child =
            |(index, node)| Self { reader: self.reader, node, at: node.at, path: format!("{}[{index}]", self.path) };
        Some(nodes.iter().enumerate().map(child).collect())
    }

    /// The scalar's parts, variables put in.
    pub(super) fn pieces(&self) -> Option<Vec<Piece>> {
        let Kind::Scalar { text, plain } = &self.node.kind else {
            self.fail(format!("expected a single value, found {}", self.node_kind()), "");
            return None;
        };
        if *plain && is_nothing(text) {
            self.fail("the value is missing", "write one, or remove the key");
            return None;
        }
        match expand::pieces(text, self.reader.env) {
            Ok(pieces) => Some(pieces),
            Err(message) => {
                self.fail(message, "");
                None
            }
        }
    }

    /// The scalar as text, variables put in.
    pub(super) fn text(&self) -> Option<String> {
        match self.pieces()?.as_slice() {
            [] => Some(String::new()),
            [Piece::Text(text)] => Some(text.clone()),
            _ => {
                self.fail("${file:...} is supported in header values only", "write the value, or use ${env:NAME}");
                None
            }
        }
    }

    /// Text that is not empty.
    pub(super) fn filled_text(&self) -> Option<String> {
        let text = self.text()?;
        if text.is_empty() {
            self.fail("must not be empty", "");
            return None;
        }
        Some(text)
    }

    /// Whether a scalar without quotes is a number or truth value to YAML.
    pub(super) fn is_typed(&self) -> bool {
        let Kind::Scalar { text, plain: true } = &self.node.kind else { return false };
        matches!(text.as_ref(), "true" | "True" | "TRUE" | "false" | "False" | "FALSE") || text.parse::<f64>().is_ok()
    }

    /// The scalar through `parse`, whose error says what is accepted.
    pub(super) fn parsed<T, E: Display>(&self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let text = self.text()?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.fail(format!("{} is {error}", self.quoted()), "");
                None
            }
        }
    }

    pub(super) fn size(&self) -> Option<u64> {
        self.parsed(unit::size)
    }

    /// A number of bytes, a rate or a count: zero would refuse everything.
    pub(super) fn at_least_one(&self, value: u64) -> Option<u64> {
        if value == 0 {
            self.fail("must be at least 1", "");
            return None;
        }
        Some(value)
    }

    pub(super) fn duration(&self) -> Option<Duration> {
        self.parsed(unit::duration)
    }

    pub(super) fn count(&self, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let count = self.parsed(unit::count)?;
        if !range.contains(&count) {
            self.fail(format!("{} is not between {} and {}", self.quoted(), range.start(), range.end()), "");
            return None;
        }
        Some(count)
    }

    pub(super) fn truth(&self) -> Option<bool> {
        self.parsed(|text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("neither true nor false"),
        })
    }

    /// One of a few words; `later` are words that will be accepted by a later release.
    pub(super) fn choice<T: Copy>(&self, known: &[(&str, T)], later: &[&str]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, choice)) = known.iter().find(|(name, _)| *name == text) {
            return Some(*choice);
        }
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let accepted = format!("accepted: {}", names.join(", "));
        if later.contains(&text.as_str()) {
            self.fail(format!("{} is not supported yet", self.quoted()), &accepted);
            return None;
        }
        let help = match nearest(&text, names) {
            Some(near) => format!("did you mean {near}? {accepted}"),
            None => accepted,
        };
        self.fail(format!("{} is not known", self.quoted()), &help);
        None
    }

    /// The value as the file has it, cut to a readable length.
    pub(super) fn quoted(&self) -> String {
        let Kind::Scalar { text, .. } = &self.node.kind else { return self.node_kind().to_owned() };
        let shown: String = text.chars().take(QUOTED_MAX).collect();
        let cut = if shown.len() < text.len() { "..." } else { "" };
        format!("\"{}{cut}\"", shown.escape_debug())
    }

    fn node_kind(&self) -> &'static str {
        match &self.node.kind {
            Kind::Scalar { text, plain: true } if is_nothing(text) => "nothing",
            Kind::Scalar { .. } => "a single value",
            Kind::Sequence(_) => "a list",
            Kind::Mapping(_) => "a mapping",
        }
    }

    fn entries(&self) -> Option<&'r [Entry<'r>]> {
        let entries = match &self.node.kind {
            Kind::Mapping(entries) => entries,
            Kind::Scalar { text, plain: true } if is_nothing(text) => return Some(&[]),
            _ => {
                let help = "write one key: value a line, indented";
                self.fail(format!("expected a mapping, found {}", self.node_kind()), help);
                return None;
            }
        };
        let mut seen = std::collections::HashMap::new();
        for entry in entries {
            if let Some(first) = seen.insert(entry.key.as_ref(), entry.key_at.line) {
                let message = format!("the key appears twice, first on line {first}");
                self.fail_at(entry.key_at, &entry.key, message, "keep one of them");
            }
        }
        Some(entries)
    }

    fn child(&self, entry: &'r Entry<'r>) -> Self {
        let at = match entry.value.kind {
            Kind::Mapping(_) => entry.key_at,
            _ => entry.value.at,
        };
        Self { reader: self.reader, node: &entry.value, at, path: self.child_path(&entry.key) }
    }

    fn child_path(&self, key: &str) -> String {
        let key: String = key.chars().take(80).collect();
        let key = key.escape_debug();
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }
}

/// A mapping of known keys.
pub(super) struct Section<'r> {
    value: Value<'r>,
    entries: &'r [Entry<'r>],
    known: Vec<(&'static str, bool)>,
}

impl<'r> Section<'r> {
    /// The value of a key, if it is there.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value<'r>> {
        self.known.push((key, true));
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        Some(self.value.child(entry))
    }

    /// A key that is understood but refused: of a later release, of another tool, or of a former name.
    pub(super) fn refuse(&mut self, key: &'static str, message: &str, help: &str) {
        self.known.push((key, false));
        if let Some(entry) = self.entries.iter().find(|entry| entry.key == key) {
            self.value.fail_at(entry.key_at, key, message, help);
        }
    }

    /// Keys of later releases.
    pub(super) fn refuse_later(&mut self, keys: &[&'static str]) {
        for key in keys {
            self.refuse(key, "not supported yet", "remove it: nothing would be done about it");
        }
    }

    /// Reports a mistake at the whole section.
    pub(super) fn fail(&self, message: impl Display, help: &str) {
        self.value.fail(message, help);
    }

    fn report_unknown(&self) {
        let accepted = || self.known.iter().filter(|(_, accepted)| *accepted).map(|(key, _)| *key);
        for entry in self.entries {
            if self.known.iter().any(|(key, _)| *key == entry.key) {
                continue;
            }
            let list = accepted().collect::<Vec<_>>().join(", ");
            let help = match nearest(&entry.key, accepted()) {
                Some(near) => format!("did you mean {near}? known: {list}"),
                None => format!("known: {list}"),
            };
            self.value.fail_at(entry.key_at, &entry.key, "unknown key", &help);
        }
    }
}

fn is_nothing(text: &str) -> bool {
    matches!(text, "" | "~" | "null")
}
