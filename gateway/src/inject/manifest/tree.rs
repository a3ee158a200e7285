//! One document as a tree that remembers at which bytes everything stands, so that text can be inserted there.
//!
//! Nothing is interpreted before it is asked for. Aliases, anchors and tags are kept as oddities: documents that only pass may
//! have them, workloads may not, because text inserted at an anchor would appear wherever the alias does.

use std::borrow::Cow;
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Value};

use super::{Flaw, scalar};

/// A pod in a CronJob in a List needs about twenty.
const DEPTH_MAX: usize = 64;

/// A document.
#[derive(Debug)]
pub(super) struct Tree<'t> {
    pub(super) root: Node<'t>,
    /// Its bytes in the stream.
    pub(super) range: Range<usize>,
}

/// One step down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Key(&'static str),
    Item(usize),
}

/// A value and the bytes of the stream from its first to behind its last.
#[derive(Debug)]
pub(super) struct Node<'t> {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) kind: Kind<'t>,
    /// It has an anchor or a tag.
    is_odd: bool,
}

#[derive(Debug)]
pub(super) enum Kind<'t> {
    Scalar { text: Cow<'t, str>, is_plain: bool },
    Sequence { items: Vec<Node<'t>>, is_flow: bool },
    Mapping { entries: Vec<Entry<'t>>, is_flow: bool },
    Alias,
}

#[derive(Debug)]
pub(super) struct Entry<'t> {
    pub(super) key: Cow<'t, str>,
    pub(super) key_start: usize,
    pub(super) key_end: usize,
    pub(super) value: Node<'t>,
}

impl<'t> Node<'t> {
    pub(super) fn entries(&self) -> &[Entry<'t>] {
        if let Kind::Mapping { entries, .. } = &self.kind { entries } else { &[] }
    }

    pub(super) fn items(&self) -> &[Node<'t>] {
        if let Kind::Sequence { items, .. } = &self.kind { items } else { &[] }
    }

    pub(super) fn entry(&self, key: &str) -> Option<&Entry<'t>> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    pub(super) fn child(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.value)
    }

    pub(super) fn descend(&self, path: &[Step]) -> Option<&Self> {
        path.iter().try_fold(self, |node, step| match *step {
            Step::Key(key) => node.child(key),
            Step::Item(index) => node.items().get(index),
        })
    }

    pub(super) fn text(&self) -> Option<&str> {
        if let Kind::Scalar { text, .. } = &self.kind { Some(text) } else { None }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, is_plain: true } if scalar::resolve(text).is_null())
    }

    /// As kubectl understands it.
    pub(super) fn to_json(&self) -> Result<Value, Flaw> {
        if self.is_odd || matches!(self.kind, Kind::Alias) {
            return Err(Flaw {
                at: self.start,
                message: "anchors, aliases and tags (&name, *name, !name) are not supported here".to_owned(),
                help: "write the value out, for example with kubectl create --dry-run=client -o yaml",
            });
        }
        Ok(match &self.kind {
            Kind::Alias => Value::Null,
            Kind::Scalar { text, is_plain: true } => scalar::resolve(text),
            Kind::Scalar { text, is_plain: false } => text.as_ref().into(),
            Kind::Sequence { items, .. } => Value::Array(items.iter().map(Node::to_json).collect::<Result<_, _>>()?),
            Kind::Mapping { entries, .. } => {
                let mut map = Map::new();
                for entry in entries {
                    if map.insert(entry.key.to_string(), entry.value.to_json()?).is_some() {
                        return Err(Flaw {
                            at: entry.key_start,
                            message: format!("{}: the key stands here for the second time", entry.key),
                            help: "keep one of them",
                        });
                    }
                }
                Value::Object(map)
            }
        })
    }
}

impl<'t> Tree<'t> {
    pub(super) fn to_json(&self) -> Result<Value, Flaw> {
        self.root.to_json()
    }

    /// Parses the document in `range` of the stream; `None` where there is none but comments.
    pub(super) fn parse(stream: &'t str, range: Range<usize>) -> Result<Option<Self>, Flaw> {
        let text = &stream[range.clone()];
        let is_content = |line: &str| !line.trim().is_empty() && !line.starts_with(['#', '%']);
        if !text.lines().any(is_content) {
            return Ok(None);
        }
        let offsets = Offsets::of(text, range.start);
        let mut builder = Builder::default();
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| Flaw {
                at: offsets.byte(error.marker().index()),
                message: format!("no valid YAML: {}", error.info()),
                help: "check indentation, colons and quotes there and just before",
            })?;
            builder.take(event, &span, &offsets, stream)?;
        }
        Ok(builder.root.filter(|root| !root.is_null()).map(|root| Self { root, range }))
    }
}

/// The bytes of each document: what lies between lines that begin with `---`. Such a line ends even a block scalar.
pub(super) fn split(stream: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut start = if stream.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut at = start;
    for line in stream[start..].split_inclusive('\n') {
        let is_separator =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if is_separator {
            ranges.push(start..at);
            start = at + 3;
        }
        at += line.len();
    }
    ranges.push(start..stream.len());
    // A stream that begins with a separator has no document before it.
    if ranges.len() > 1
        && stream[ranges[0].clone()].lines().all(|line| line.trim().is_empty() || line.starts_with(['#', '%']))
    {
        ranges.remove(0);
    }
    ranges
}

/// The parser counts characters from the document's beginning, text is cut at bytes of the stream.
struct Offsets {
    base: usize,
    /// Of each character, where not every character is a byte.
    table: Option<Vec<usize>>,
    length: usize,
}

impl Offsets {
    fn of(text: &str, base: usize) -> Self {
        let table = (!text.is_ascii()).then(|| text.char_indices().map(|(at, _)| at).collect());
        Self { base, table, length: text.len() }
    }

    fn byte(&self, character: usize) -> usize {
        let at = match &self.table {
            None => character.min(self.length),
            Some(table) => table.get(character).copied().unwrap_or(self.length),
        };
        self.base + at
    }
}

#[derive(Default)]
struct Builder<'t> {
    open: Vec<Open<'t>>,
    root: Option<Node<'t>>,
}

/// A collection whose end has not come yet.
struct Open<'t> {
    node: Node<'t>,
    /// Of a mapping: the key whose value comes next.
    key: Option<(Cow<'t, str>, usize, usize)>,
}

impl<'t> Builder<'t> {
    fn take(&mut self, event: Event<'t>, span: &Span, offsets: &Offsets, stream: &str) -> Result<(), Flaw> {
        let (start, end) = (offsets.byte(span.start.index()), offsets.byte(span.end.index()));
        let is_flow = |open: &str| stream[start..].starts_with(open);
        let node = |kind, is_odd| Node { start, end, kind, is_odd };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let kind = Kind::Scalar { text, is_plain: style == ScalarStyle::Plain };
                // The parser counts blanks and a comment behind quotes as part of them.
                let end = quoted_end(&stream[start..end]).map_or(end, |length| start + length);
                self.add(Node { start, end, kind, is_odd: anchor > 0 || tag.is_some() })
            }
            Event::Alias(_) => self.add(node(Kind::Alias, true)),
            Event::SequenceStart(anchor, tag) => {
                let kind = Kind::Sequence { items: Vec::new(), is_flow: is_flow("[") };
                self.begin(node(kind, anchor > 0 || tag.is_some()))
            }
            Event::MappingStart(anchor, tag) => {
                let kind = Kind::Mapping { entries: Vec::new(), is_flow: is_flow("{") };
                self.begin(node(kind, anchor > 0 || tag.is_some()))
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { mut node, .. }) => {
                    node.end = end;
                    self.add(node)
                }
                None => Ok(()),
            },
            Event::DocumentStart(_) if self.root.is_some() => Err(Flaw {
                at: start,
                message: "a second document begins here without `---`".to_owned(),
                help: "separate documents with a line of three hyphens",
            }),
            Event::DocumentStart(_) | Event::DocumentEnd | Event::StreamStart | Event::StreamEnd | Event::Nothing => {
                Ok(())
            }
        }
    }

    fn begin(&mut self, node: Node<'t>) -> Result<(), Flaw> {
        if self.open.len() == DEPTH_MAX {
            return Err(Flaw {
                at: node.start,
                message: format!("nested more than {DEPTH_MAX} deep"),
                help: "no Kubernetes object is; is it a manifest?",
            });
        }
        if matches!(self.open.last(), Some(Open { node: Node { kind: Kind::Mapping { .. }, .. }, key: None })) {
            return Err(text_key_wanted(node.start));
        }
        self.open.push(Open { node, key: None });
        Ok(())
    }

    fn add(&mut self, node: Node<'t>) -> Result<(), Flaw> {
        let Some(Open { node: parent, key }) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut parent.kind, key.take()) {
            (Kind::Mapping { entries, .. }, Some((key, key_start, key_end))) => {
                entries.push(Entry { key, key_start, key_end, value: node });
            }
            (Kind::Mapping { .. }, None) => match node.kind {
                Kind::Scalar { text, .. } => *key = Some((text, node.start, node.end)),
                _ => return Err(text_key_wanted(node.start)),
            },
            (Kind::Sequence { items, .. }, _) => items.push(node),
            (Kind::Scalar { .. } | Kind::Alias, _) => {}
        }
        Ok(())
    }
}

/// Behind the closing quote of a text that begins with one.
fn quoted_end(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|first| matches!(first, '"' | '\''))?;
    let mut rest = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = rest.next() {
        let next = rest.peek().map(|(_, next)| *next);
        if character == '\\' && quote == '"' || character == quote && quote == '\'' && next == Some(quote) {
            rest.next();
        } else if character == quote {
            return Some(at + quote.len_utf8());
        }
    }
    None
}

fn text_key_wanted(at: usize) -> Flaw {
    Flaw { at, message: "a key must be a text".to_owned(), help: "put texts that begin with { or [ into quotes" }
}
