//! Whether bytes are an OTLP request that every backend can decode, told in one pass that can be interrupted anywhere.
//!
//! A table-driven machine with an explicit stack: no recursion, no allocation below 16 levels, never more than
//! [`DEPTH_MAX`] levels. It knows lengths, wire types, UTF-8 and the lengths of ids; it counts items; it never looks at
//! what a value means. An [`Observer`] is told where resources and their attributes are.
//!
//! ```text
//! frame   message, end, field it was entered by      top: the one being read; stack: the ones around it
//! field   tag -> ACTIONS[message][tag] -> kind -> check the value, skip it or enter it
//! run     a long text or packed list that a step left unfinished: the next one begins inside it
//! ```

use smallvec::SmallVec;

use super::primitive::{self, WireType};
use super::schema::{ACTIONS, Kind, Message};
use super::{Invalid, text, usual};
use crate::base::Signal;

/// Levels of messages below the request: protobuf's own limit in C++, Java and prost. What is deeper could not be
/// decoded by the backend, and would poison what it is merged with.
pub(crate) const DEPTH_MAX: usize = 100;

/// Longer texts and packed lists are checked in pieces of at least this many bytes.
const RUN_BYTES_MIN: usize = 4096;

/// What a field costs of a step's budget beside its bytes, unless the short cut takes it: a request of fields of two bytes
/// must not take many times as long a step as an honest one.
const FIELD_COST: usize = 16;

/// Who is told about resources on the way. Offsets are from the start of the request.
pub(crate) trait Observer {
    /// An observed message begins: its tag is at `tag`, its body at `body`.
    fn enter(&mut self, message: Message, tag: usize, body: usize);
    /// A key of the resource attribute entered last. The last one of several counts.
    fn key(&mut self, start: usize, end: usize);
    /// The observed message entered last ends at `end`.
    fn leave(&mut self, message: Message, end: usize) -> Result<(), &'static str>;
}

/// One validation under way.
#[derive(Debug)]
pub(crate) struct Validator {
    pos: usize,
    items: u32,
    top: Frame,
    stack: SmallVec<[Frame; 16]>,
    run: Option<Run>,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    end: usize,
    field: u32,
    message: Message,
}

/// The unchecked rest of a value, from `pos` on.
#[derive(Debug, Clone, Copy)]
struct Run {
    tag: usize,
    number: Option<u32>,
    end: usize,
    kind: RunKind,
}

#[derive(Debug, Clone, Copy)]
enum RunKind {
    Text,
    Varints,
}

/// What is wrong with the field whose tag is at `pos`.
struct Fault {
    problem: &'static str,
    number: Option<u32>,
}

impl From<&'static str> for Fault {
    fn from(problem: &'static str) -> Self {
        Self { problem, number: None }
    }
}

impl Validator {
    /// For a request of `length` bytes.
    pub(crate) fn new(signal: Signal, length: usize) -> Self {
        let top = Frame { end: length, field: 0, message: Message::request(signal) };
        Self { pos: 0, items: 0, top, stack: SmallVec::new(), run: None }
    }

    /// Items seen so far.
    pub(crate) fn items(&self) -> u32 {
        self.items
    }

    /// Bytes checked so far.
    pub(crate) fn position(&self) -> usize {
        self.pos
    }

    /// Checks roughly `budget` bytes more and says whether that was all. `bytes` must be the same at every step.
    pub(crate) fn step<O: Observer>(&mut self, bytes: &[u8], budget: usize, observer: &mut O) -> Result<bool, Invalid> {
        let mut stop = self.pos.saturating_add(budget.max(1));
        loop {
            if self.run.is_some() {
                self.run(bytes, stop)?;
                if self.run.is_some() {
                    return Ok(false);
                }
            }
            let Frame { message, end, .. } = self.top;
            if self.stack.len() + usual::LEVELS <= DEPTH_MAX {
                self.pos = usual::skip(bytes, message, self.pos, end, stop);
            }
            if self.pos >= end {
                if self.stack.is_empty() {
                    return Ok(true);
                }
                self.leave(observer)?;
            } else if self.pos >= stop {
                return Ok(false);
            } else if let Err(fault) = self.field(bytes, observer) {
                return Err(self.invalid(&fault));
            } else {
                stop = stop.saturating_sub(FIELD_COST);
            }
        }
    }

    #[inline]
    fn leave<O: Observer>(&mut self, observer: &mut O) -> Result<(), Invalid> {
        let Frame { message, end, .. } = self.top;
        if message == Message::Group {
            return Err(self.invalid(&"a group is not closed".into()));
        }
        if message.is_observed() {
            observer.leave(message, end).map_err(|problem| self.invalid(&problem.into()))?;
        }
        if let Some(parent) = self.stack.pop() {
            self.top = parent;
        }
        Ok(())
    }

    /// Reads one field; what it leaves to do is in `run`, or on the stack.
    #[inline]
    fn field<O: Observer>(&mut self, bytes: &[u8], observer: &mut O) -> Result<(), Fault> {
        let Frame { end, message, .. } = self.top;
        let actions = &ACTIONS[message as usize];
        let action = bytes.get(self.pos).and_then(|tag| *actions.get(usize::from(*tag))?);
        let (kind, value) = match action {
            Some(kind) => (kind, self.pos + 1),
            None => match self.rare(bytes)? {
                Some(found) => found,
                None => return Ok(()),
            },
        };
        let fail = |problem| Fault { problem, number: self.number(bytes) };
        let past = match kind {
            Kind::Varint => primitive::varint(bytes, value).ok_or_else(|| fail(BAD_VARINT))?.1,
            Kind::Fixed64 => value + 8,
            Kind::Fixed32 => value + 4,
            _ => return self.body(kind, bytes, value, observer),
        };
        if past > end {
            return Err(fail("a value reaches beyond the message that holds it"));
        }
        self.pos = past;
        Ok(())
    }

    /// Reads the value of a length-delimited field.
    #[inline]
    fn body<O: Observer>(&mut self, kind: Kind, bytes: &[u8], value: usize, observer: &mut O) -> Result<(), Fault> {
        let fail = |problem| Fault { problem, number: self.number(bytes) };
        let (start, end) = primitive::length(bytes, value, self.top.end).map_err(fail)?;
        match kind {
            Kind::Message(child) => return self.enter(child, bytes, start, end, observer),
            Kind::Text | Kind::Key if end - start > RUN_BYTES_MIN => {
                self.run = Some(Run { tag: self.pos, number: self.number(bytes), end, kind: RunKind::Text });
            }
            Kind::Text | Kind::Key if !text::is_utf8(&bytes[start..end]) => return Err(fail(BAD_TEXT)),
            Kind::TraceId if !matches!(end - start, 0 | 16) => return Err(fail("a trace id has 16 bytes, or none")),
            Kind::SpanId if !matches!(end - start, 0 | 8) => return Err(fail("a span id has 8 bytes, or none")),
            Kind::PackedFixed64 if !(end - start).is_multiple_of(8) => {
                return Err(fail("a packed list of 8-byte values is cut short"));
            }
            Kind::PackedVarint => {
                self.run = Some(Run { tag: self.pos, number: self.number(bytes), end, kind: RunKind::Varints });
            }
            _ => {}
        }
        if kind == Kind::Key {
            observer.key(start, end);
        }
        self.pos = if self.run.is_some() { start } else { end };
        Ok(())
    }

    #[inline]
    fn enter<O: Observer>(
        &mut self,
        child: Message,
        bytes: &[u8],
        start: usize,
        end: usize,
        observer: &mut O,
    ) -> Result<(), Fault> {
        let number = self.number(bytes);
        if self.stack.len() >= DEPTH_MAX {
            return Err(Fault { problem: TOO_DEEP, number });
        }
        if child.is_observed() {
            observer.enter(child, self.pos, start);
        }
        if child == Message::ResourceAttribute && usual::is_plain_attribute(&bytes[start..end]) {
            let key = start + 2;
            observer.key(key, key + usize::from(bytes[start + 1]));
            self.pos = end;
            return observer.leave(child, end).map_err(|problem| Fault { problem, number });
        }
        self.items += u32::from(child.is_item());
        self.stack.push(self.top);
        self.top = Frame { end, field: number.unwrap_or(0), message: child };
        self.pos = start;
        Ok(())
    }

    /// Fields that are unknown, wrong, grouped, or only unusually written. `None`: dealt with.
    #[cold]
    fn rare(&mut self, bytes: &[u8]) -> Result<Option<(Kind, usize)>, Fault> {
        let (number, wire_type, value) = primitive::tag(bytes, self.pos)?;
        let fail = |problem| Fault { problem, number: Some(number) };
        if value > self.top.end {
            return Err(fail("a tag reaches beyond the message that holds it"));
        }
        if let Some(field) = self.top.message.field(number) {
            let kind = match (field.kind, wire_type) {
                (Kind::PackedFixed64, WireType::Fixed64) => Kind::Fixed64,
                (Kind::PackedVarint, WireType::Varint) => Kind::Varint,
                (kind @ Kind::Varint, WireType::Varint)
                | (kind @ Kind::Fixed64, WireType::Fixed64)
                | (kind @ Kind::Fixed32, WireType::Fixed32) => kind,
                (Kind::Varint | Kind::Fixed64 | Kind::Fixed32, _) => return Err(fail(WRONG_TYPE)),
                (kind, WireType::Length) => kind,
                _ => return Err(fail(WRONG_TYPE)),
            };
            return Ok(Some((kind, value)));
        }
        if self.stack.len() >= DEPTH_MAX && wire_type != WireType::GroupEnd {
            return Err(fail(TOO_DEEP));
        }
        match wire_type {
            WireType::Varint => return Ok(Some((Kind::Varint, value))),
            WireType::Fixed64 => return Ok(Some((Kind::Fixed64, value))),
            WireType::Fixed32 => return Ok(Some((Kind::Fixed32, value))),
            WireType::Length => return Ok(Some((Kind::Bytes, value))),
            WireType::GroupStart => {
                self.stack.push(self.top);
                self.top = Frame { end: self.top.end, field: number, message: Message::Group };
            }
            WireType::GroupEnd => {
                if self.top.message != Message::Group || self.top.field != number {
                    return Err(fail("a group ends that was not begun"));
                }
                self.top = self.stack.pop().ok_or("a group has no message around it")?;
            }
        }
        self.pos = value;
        Ok(None)
    }

    /// Goes on with a long value.
    #[cold]
    fn run(&mut self, bytes: &[u8], stop: usize) -> Result<(), Invalid> {
        let Some(Run { tag, number, end, kind }) = self.run else { return Ok(()) };
        let rest = &bytes[self.pos..end];
        let want = stop.saturating_sub(self.pos).max(RUN_BYTES_MIN);
        let done = match kind {
            RunKind::Text => {
                let cut = text::boundary(rest, want);
                if !text::is_utf8(&rest[..cut]) {
                    self.pos = tag;
                    return Err(self.invalid(&Fault { problem: BAD_TEXT, number }));
                }
                cut
            }
            RunKind::Varints => {
                let mut at = 0;
                while at < rest.len().min(want) {
                    let Some((_, next)) = primitive::varint(rest, at) else {
                        self.pos = tag;
                        return Err(self.invalid(&Fault { problem: BAD_VARINT, number }));
                    };
                    at = next;
                }
                at
            }
        };
        self.pos += done;
        if self.pos == end {
            self.run = None;
        }
        Ok(())
    }

    /// The number of the field at `pos`, for messages about it.
    #[inline]
    fn number(&self, bytes: &[u8]) -> Option<u32> {
        match bytes.get(self.pos) {
            Some(&tag) if tag < 0x80 => Some(u32::from(tag >> 3)),
            _ => primitive::tag(bytes, self.pos).ok().map(|(number, ..)| number),
        }
    }

    #[cold]
    fn invalid(&self, fault: &Fault) -> Invalid {
        let frames = self.stack.iter().chain([&self.top]);
        let numbers = frames.clone().skip(1).map(|frame| Some(frame.field)).chain([fault.number]);
        let mut path = String::new();
        for (frame, number) in frames.zip(numbers).take(PATH_FIELDS_MAX) {
            let Some(number) = number else { break };
            if !path.is_empty() {
                path.push('.');
            }
            match frame.message.field(number) {
                Some(field) => path.push_str(field.name),
                None => path.push_str(&number.to_string()),
            }
        }
        Invalid { problem: fault.problem, offset: self.pos, path }
    }
}

/// Deeper paths are shown by their beginning: an error travels in a header.
const PATH_FIELDS_MAX: usize = 16;

const BAD_TEXT: &str = "a string is not UTF-8";
const BAD_VARINT: &str = "a varint is cut short or too long";
const TOO_DEEP: &str = "messages are nested more than 100 levels deep";
const WRONG_TYPE: &str = "a field has another wire type than in OTLP";
