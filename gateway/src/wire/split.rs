//! Cutting a request into parts, level by level, in one pass that can be interrupted.
//!
//! ```text
//! level 0  request               children: envelopes
//! level 1  Resource{Spans,...}   children: scopes        what is beside the children is the level's envelope:
//! level 2  Scope{Spans,...}      children: items         repeated in each part that holds one of the children
//! level 3  Metric                children: data          only for a metric that fits no part
//! level 4  Gauge, Sum, ...       children: data points   the same
//!
//! each level   collect its envelope -> then its children, one by one
//! each child   fits the part under construction -> joins it, opening the levels around it where they are not yet open
//!              else the part is closed and written, and the child goes to the next one; fits none -> ItemTooLarge
//! ```

use bytes::Bytes;
use smallvec::SmallVec;

use super::ItemTooLarge;
use super::assemble::{Assembly, Open};
use super::fields::{Field, field};
use super::primitive::{field_len, length_tag};
use super::read::{is_data, points};
use super::schema::number;
use crate::base::Signal;

/// A splitting under way.
#[derive(Debug)]
pub(crate) struct Splitter {
    payload: Bytes,
    signal: Signal,
    max: usize,
    /// What all parts together may still take.
    output_left: usize,
    levels: SmallVec<[Level; 5]>,
    part: Part,
    /// The part being written, once it is closed.
    writing: Option<Vec<u8>>,
    parts: Vec<(Bytes, u32)>,
}

/// A message that is taken apart.
#[derive(Debug)]
struct Level {
    tag: u8,
    start: usize,
    body: usize,
    end: usize,
    /// Where to go on: collecting the envelope first, then, from `body` again, the children.
    pos: usize,
    envelope: Vec<u8>,
    collected: bool,
    /// Whether some part holds it: it must not vanish with an unknown field in it.
    written: bool,
}

/// The part under construction.
#[derive(Debug, Default)]
struct Part {
    assembly: Assembly,
    /// Copies of the envelopes.
    side: Vec<u8>,
    /// Levels 1 and deeper that are open in it.
    open: SmallVec<[OpenLevel; 4]>,
    /// Bytes of level 0 that are complete.
    complete: usize,
    items: u32,
}

#[derive(Debug)]
struct OpenLevel {
    open: Open,
    /// Bytes of its body that are complete.
    body: usize,
}

/// What a field costs of a step's budget, in bytes; and how many bytes copied to fresh memory cost one.
const FIELD_COST: usize = 16;
const COPIED_PER_COST: usize = 2;

/// A part is closed early rather than to have more pieces: they are memory that nobody reserved.
const PIECES_MAX: usize = 65_536;

impl Splitter {
    /// For a validated request. Each part will have at most `max` bytes, all of them at most `output_max`.
    pub(crate) fn new(payload: Bytes, signal: Signal, max: usize, output_max: usize) -> Result<Self, ItemTooLarge> {
        if u32::try_from(payload.len()).is_err() {
            return Err(ItemTooLarge { problem: "a request has 4 GiB or more", offset: 0 });
        }
        let mut root = Level::new(0, 0, 0, payload.len());
        root.collected = true;
        Ok(Self {
            payload,
            signal,
            max,
            output_left: output_max,
            levels: SmallVec::from_iter([root]),
            part: Part::default(),
            writing: None,
            parts: Vec::new(),
        })
    }

    /// Does work worth roughly `budget` bytes and says whether all parts are complete.
    pub(crate) fn step(&mut self, budget: usize) -> Result<bool, ItemTooLarge> {
        let mut left = budget.max(1);
        while left > 0 {
            let cost = if self.writing.is_some() {
                self.write(left)
            } else if let Some(level) = self.levels.last() {
                match (level.pos < level.end, level.collected) {
                    (true, true) => self.child()?,
                    (true, false) => self.collect()?,
                    (false, false) => self.end_of_envelope(),
                    (false, true) => self.leave()?,
                }
            } else {
                return Ok(true);
            };
            left = left.saturating_sub(cost);
        }
        Ok(false)
    }

    /// Bytes of the parts so far.
    pub(crate) fn held(&self) -> usize {
        let complete: usize = self.parts.iter().map(|(part, _)| part.len()).sum();
        complete + self.writing.as_ref().map_or(0, Vec::capacity)
    }

    /// The parts, each with its items.
    pub(crate) fn into_parts(self) -> Vec<(Bytes, u32)> {
        self.parts
    }

    fn top(&mut self) -> &mut Level {
        self.levels.last_mut().expect("step looks at the levels before it works on the last one")
    }

    /// Looks at one field of the level whose envelope is being collected.
    fn collect(&mut self) -> Result<usize, ItemTooLarge> {
        let depth = self.levels.len() - 1;
        let (payload, max) = (self.payload.clone(), self.max);
        let level = self.top();
        let field = field(&payload, level.pos, level.end);
        level.pos = field.end;
        if is_child(depth, &field) {
            return Ok(FIELD_COST);
        }
        let length = field.end - field.start;
        if level.envelope.len() + length > max {
            let problem = "a resource, scope or metric is too large to be repeated beside each of its items";
            return Err(ItemTooLarge { problem, offset: level.start });
        }
        level.envelope.extend_from_slice(&payload[field.start..field.end]);
        Ok(FIELD_COST + length / COPIED_PER_COST)
    }

    fn end_of_envelope(&mut self) -> usize {
        let level = self.top();
        level.collected = true;
        level.pos = level.body;
        1
    }

    /// Looks at the next field of a level whose envelope is known.
    fn child(&mut self) -> Result<usize, ItemTooLarge> {
        let depth = self.levels.len() - 1;
        let (pos, end) = (self.top().pos, self.top().end);
        let field = field(&self.payload, pos, end);
        if !is_child(depth, &field) {
            if depth > 0 || self.add(field.start, field.end, 0)? {
                self.top().pos = field.end;
            }
            return Ok(FIELD_COST);
        }
        let length = field.end - field.start;
        let is_metric = depth == 2 && self.signal == Signal::Metrics;
        let is_leaf = match depth {
            2 => !is_metric || self.size_alone(length) <= self.max,
            _ => depth == 4,
        };
        if !is_leaf {
            self.top().pos = field.end;
            #[expect(clippy::cast_possible_truncation, reason = "the numbers of children are below 16")]
            let tag = length_tag(field.number as u8);
            self.levels.push(Level::new(tag, field.start, field.body, field.end));
            return Ok(FIELD_COST);
        }
        let items = if is_metric { points(&self.payload, field) } else { 1 };
        if self.add(field.start, field.end, items)? {
            self.top().pos = field.end;
        }
        Ok(FIELD_COST + if is_metric { length } else { 0 })
    }

    /// The top level has no more fields.
    fn leave(&mut self) -> Result<usize, ItemTooLarge> {
        let depth = self.levels.len() - 1;
        if depth == 0 {
            if self.part.complete > 0 {
                self.flush()?;
            } else {
                self.levels.pop();
            }
            return Ok(1);
        }
        let level = self.top();
        let (written, end, is_empty) = (level.written, level.end, level.envelope.is_empty());
        if !written && !is_empty && !self.add(end, end, 0)? {
            return Ok(1);
        }
        if self.part.open.len() == depth {
            self.part.close();
        }
        self.levels.pop();
        Ok(1)
    }

    /// Adds a run of bytes to the top level. False: the part has to be written first; try again.
    fn add(&mut self, start: usize, end: usize, items: u32) -> Result<bool, ItemTooLarge> {
        let part = &mut self.part;
        let is_new = part.complete == 0 && part.open.is_empty();
        let size = part.complete + nested(&self.levels, &part.open, end - start);
        if size > self.max && is_new {
            return Err(ItemTooLarge { problem: "an item is larger than a request may be", offset: start });
        }
        if size > self.max || part.assembly.pieces() >= PIECES_MAX {
            self.flush()?;
            return Ok(false);
        }
        for level in &mut self.levels[1 + part.open.len()..] {
            level.written = true;
            part.open(level.tag, &level.envelope);
        }
        part.assembly.source(start, end);
        *part.open.last_mut().map_or(&mut part.complete, |level| &mut level.body) += end - start;
        part.items = part.items.saturating_add(items);
        Ok(true)
    }

    /// The size of a part that holds nothing but this child of the top level.
    fn size_alone(&self, length: usize) -> usize {
        nested(&self.levels, &[], length)
    }

    /// Closes the part; the next steps write it.
    fn flush(&mut self) -> Result<(), ItemTooLarge> {
        while !self.part.open.is_empty() {
            self.part.close();
        }
        let length = self.part.assembly.len();
        self.output_left = self.output_left.checked_sub(length).ok_or(ItemTooLarge {
            problem: "resources, scopes or metrics are too large to be repeated beside their items",
            offset: self.levels.last().map_or(0, |level| level.pos),
        })?;
        self.writing = Some(Vec::with_capacity(length));
        Ok(())
    }

    fn write(&mut self, left: usize) -> usize {
        let Some(out) = &mut self.writing else { return 1 };
        let before = out.len();
        let budget = left.saturating_mul(COPIED_PER_COST);
        let done = self.part.assembly.write(&self.payload, &self.part.side, out, budget);
        let cost = (out.len() - before).div_ceil(COPIED_PER_COST).max(1);
        if done && let Some(out) = self.writing.take() {
            self.parts.push((Bytes::from(out), self.part.items));
            self.part.clear();
        }
        cost
    }
}

impl Level {
    fn new(tag: u8, start: usize, body: usize, end: usize) -> Self {
        Self { tag, start, body, end, pos: body, envelope: Vec::new(), collected: false, written: false }
    }
}

impl Part {
    fn open(&mut self, tag: u8, envelope: &[u8]) {
        let open = self.assembly.open(tag);
        let start = self.side.len();
        self.side.extend_from_slice(envelope);
        self.assembly.side(start, self.side.len());
        self.open.push(OpenLevel { open, body: envelope.len() });
    }

    /// Closes the deepest open level.
    fn close(&mut self) {
        let Some(OpenLevel { open, body }) = self.open.pop() else { return };
        self.assembly.close(open, body);
        *self.open.last_mut().map_or(&mut self.complete, |parent| &mut parent.body) += field_len(body);
    }

    fn clear(&mut self) {
        self.assembly.clear();
        self.side.clear();
        self.complete = 0;
        self.items = 0;
    }
}

/// What `length` bytes in the deepest of `levels` add to a part in which `open` of them are open.
fn nested(levels: &[Level], open: &[OpenLevel], length: usize) -> usize {
    let bodies = levels.iter().skip(1).enumerate().map(|(index, level)| match open.get(index) {
        Some(open) => open.body,
        None => level.envelope.len(),
    });
    bodies.rev().fold(length, |inner, body| field_len(body + inner))
}

/// Whether a field of a message at that depth is one of its children.
fn is_child(depth: usize, field: &Field) -> bool {
    match depth {
        0 => field.is(number::ENVELOPE),
        1 => field.is(number::SCOPE),
        2 => field.is(number::ITEM),
        3 => is_data(field),
        _ => field.is(number::POINT),
    }
}
