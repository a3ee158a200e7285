//! YAML text to a tree that remembers where everything stands.
//!
//! Built from the parser's events and not from a loaded document, because a loader keeps one of two equal keys, or stops at
//! the first pair: here both stay, and the reader reports every one. Nothing is interpreted: scalars stay text, since
//! what a `1` or a `true` means is known only where it is used. Anchors, aliases, tags and second documents are refused:
//! an alias is how a few lines of YAML become gigabytes.

use std::borrow::Cow;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

/// A file of this size has more lines than anybody reviews.
pub(super) const BYTES_MAX: usize = 1024 * 1024;
/// The deepest valid key is six levels down.
const DEPTH_MAX: usize = 16;

/// From 1, as editors count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Place {
    fn of(marker: Marker) -> Self {
        Self { line: marker.line(), column: marker.col() + 1 }
    }
}

/// A value and where it begins.
#[derive(Debug)]
pub(super) struct Node<'t> {
    pub(super) at: Place,
    pub(super) kind: Kind<'t>,
}

#[derive(Debug)]
pub(super) enum Kind<'t> {
    /// `plain`: written without quotes, so that nothing and `~` mean "no value".
    Scalar {
        text: Cow<'t, str>,
        plain: bool,
    },
    Sequence(Vec<Node<'t>>),
    Mapping(Vec<Entry<'t>>),
}

#[derive(Debug)]
pub(super) struct Entry<'t> {
    pub(super) key: Cow<'t, str>,
    pub(super) key_at: Place,
    pub(super) value: Node<'t>,
}

/// Why a text is no tree. The parser cannot go on after it, so there is one at most.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TreeError {
    pub(super) at: Place,
    pub(super) message: String,
    pub(super) help: &'static str,
}

/// The text's one document.
pub(super) fn parse(text: &str) -> Result<Node<'_>, TreeError> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| TreeError {
            at: Place::of(*error.marker()),
            message: format!("no valid YAML: {}", error.info()),
            help: "check indentation, colons and quotes there and just before",
        })?;
        builder.take(event, Place::of(span.start))?;
    }
    Ok(builder.root.unwrap_or(Node { at: Place { line: 1, column: 1 }, kind: Kind::Mapping(Vec::new()) }))
}

#[derive(Default)]
struct Builder<'t> {
    open: Vec<Open<'t>>,
    root: Option<Node<'t>>,
}

/// A collection whose end has not come yet.
struct Open<'t> {
    at: Place,
    content: Content<'t>,
}

enum Content<'t> {
    Sequence(Vec<Node<'t>>),
    Mapping { entries: Vec<Entry<'t>>, key: Option<(Cow<'t, str>, Place)> },
}

impl<'t> Builder<'t> {
    fn take(&mut self, event: Event<'t>, at: Place) -> Result<(), TreeError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_anchor_and_tag(anchor, tag.is_some(), at)?;
                self.add(Node { at, kind: Kind::Scalar { text, plain: style == ScalarStyle::Plain } })
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_anchor_and_tag(anchor, tag.is_some(), at)?;
                self.begin(at, Content::Sequence(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                refuse_anchor_and_tag(anchor, tag.is_some(), at)?;
                self.begin(at, Content::Mapping { entries: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { at, content: Content::Sequence(nodes) }) => {
                    self.add(Node { at, kind: Kind::Sequence(nodes) })
                }
                Some(Open { at, content: Content::Mapping { entries, .. } }) => {
                    self.add(Node { at, kind: Kind::Mapping(entries) })
                }
                None => Ok(()),
            },
            Event::Alias(_) => Err(refusal(at, "aliases (*name) are not supported", "write the value out")),
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(refusal(at, "a second document begins here", "keep one document in the file"))
            }
            Event::DocumentStart(_) | Event::DocumentEnd | Event::StreamStart | Event::StreamEnd | Event::Nothing => {
                Ok(())
            }
        }
    }

    fn begin(&mut self, at: Place, content: Content<'t>) -> Result<(), TreeError> {
        if self.open.len() == DEPTH_MAX {
            return Err(refusal(at, "nested too deeply", "no setting is deeper than six levels"));
        }
        if matches!(self.open.last(), Some(Open { content: Content::Mapping { key: None, .. }, .. })) {
            return Err(refusal(at, "a key must be a text", "put texts that begin with { or [ into quotes"));
        }
        self.open.push(Open { at, content });
        Ok(())
    }

    fn add(&mut self, node: Node<'t>) -> Result<(), TreeError> {
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(Content::Sequence(nodes)) => nodes.push(node),
            Some(Content::Mapping { entries, key }) => match (key.take(), node) {
                (Some((key, key_at)), value) => entries.push(Entry { key, key_at, value }),
                (None, Node { at, kind: Kind::Scalar { text, .. } }) => *key = Some((text, at)),
                (None, node) => return Err(refusal(node.at, "a key must be a text", "")),
            },
        }
        Ok(())
    }
}

fn refuse_anchor_and_tag(anchor: usize, tagged: bool, at: Place) -> Result<(), TreeError> {
    if anchor > 0 {
        return Err(refusal(at, "anchors (&name) are not supported", "write the value out where it is needed"));
    }
    if tagged {
        return Err(refusal(at, "tags (!name) are not supported", "remove the tag"));
    }
    Ok(())
}

fn refusal(at: Place, message: &str, help: &'static str) -> TreeError {
    TreeError { at, message: message.to_owned(), help }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> (usize, usize, String) {
        let error = parse(text).expect_err("must be refused");
        (error.at.line, error.at.column, error.message)
    }

    /// Scenario: a mapping with two equal keys, on lines 2 and 4.
    /// Guarantees: both stay, with their places, so that the reader can name the second and the first.
    #[test]
    fn equal_keys_both_stay_with_their_places() {
        let tree = parse("a:\n  b: 1\n  c: 2\n  b: 3\n").expect("well-formed");
        let Kind::Mapping(top) = tree.kind else { panic!("a mapping") };
        let Kind::Mapping(inner) = &top[0].value.kind else { panic!("a mapping") };
        let keys: Vec<_> =
            inner.iter().map(|entry| (entry.key.as_ref(), entry.key_at.line, entry.key_at.column)).collect();
        assert_eq!(keys, [("b", 2, 3), ("c", 3, 3), ("b", 4, 3)]);
    }

    /// Scenario: texts that are no YAML, or YAML that a configuration does not need.
    /// Guarantees: each is refused at its place; in particular no alias is ever expanded.
    #[test]
    fn what_is_no_plain_tree_is_refused_at_its_place() {
        assert_eq!(error("a: &x 1\nb: *x\n").0, 1);
        assert_eq!(error("a: !secret b\n"), (1, 4, "tags (!name) are not supported".to_owned()));
        assert_eq!(error("a: 1\n---\nb: 2\n"), (2, 1, "a second document begins here".to_owned()));
        assert_eq!(error("? [a, b]\n: c\n").2, "a key must be a text");
        assert!(error("a: [1, 2\nb: 3\n").2.starts_with("no valid YAML"));
        assert!(error("a: \"open\n").2.starts_with("no valid YAML"));
    }

    /// Scenario: 100,000 opening brackets, and a mapping nested once more than the limit.
    /// Guarantees: an error, neither a stack overflow nor a tree of that depth.
    #[test]
    fn depth_is_bounded() {
        assert!(parse(&"[".repeat(100_000)).is_err());
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(DEPTH_MAX)).is_ok());
        assert_eq!(error(&nested(DEPTH_MAX + 1)).2, "nested too deeply");
    }

    /// Scenario: no content at all.
    /// Guarantees: an empty file is an empty configuration, not an accident.
    #[test]
    fn an_empty_text_is_an_empty_mapping() {
        for text in ["", "\n", "# only a comment\n", "---\n"] {
            let tree = parse(text).expect("well-formed");
            assert!(
                matches!(&tree.kind, Kind::Mapping(entries) if entries.is_empty())
                    || matches!(&tree.kind, Kind::Scalar { text, plain: true } if text.is_empty()),
                "{text:?}: {tree:?}"
            );
        }
    }
}
