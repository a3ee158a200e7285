//! Rewriting the resource of each `Resource{Spans,Metrics,Logs}`: noted while the request is validated, then copied once.
//!
//! ```text
//! attribute with an attested key   byte for byte what is attested, for the first time -> stays
//!                                  anything else -> cut out; counted if the value is another one
//! attribute with a default's key   stays, and the default is not added
//! end of the Resource{Spans,...}   nothing cut, nothing missing -> untouched
//!                                  else its resource fields become one, at the place of the first: their bodies without
//!                                  what was cut (protobuf merges a field given twice by concatenation), then what is missing
//! ```
//! Everything else, unknown fields included, keeps its bytes and its order.

use smallvec::SmallVec;

use super::plan::Plan;
use crate::wire::assemble::Assembly;
use crate::wire::fields::Field;
use crate::wire::primitive::{field_len, length_tag};
use crate::wire::schema::{Message, number};
use crate::wire::text_value;
use crate::wire::validate::Observer;

/// Resource fields of one `Resource{Spans,...}`. Encoders write one; more is only legal, and must not need memory.
const RESOURCES_MAX: usize = 16;

/// Attributes with attested keys in one `Resource{Spans,...}`, other than the right ones. Honest pods have one per key.
const CUTS_MAX: usize = 256;

/// Notes of one request, 12 bytes each: enough for 30,000 resources.
const PIECES_MAX: usize = 262_144;

/// Notes about one request.
#[derive(Debug, Default)]
pub(super) struct Enrichment {
    assembly: Assembly,
    /// How much of the request the assembly covers.
    covered: usize,
    overwritten: u32,
    envelope: Place,
    resource: Place,
    attribute: Place,
    key: (usize, usize),
    /// Of the present envelope: tag, body and end of each resource field.
    resources: SmallVec<[(Place, usize); 1]>,
    /// Of the present envelope: what is cut out of its resources.
    cuts: SmallVec<[(usize, usize); 4]>,
    /// Of the present envelope: bit per attribute of the plan that stays as the pod sent it.
    present: SmallVec<[u64; 2]>,
}

/// Where a field begins.
#[derive(Debug, Default, Clone, Copy)]
struct Place {
    tag: usize,
    body: usize,
}

impl Enrichment {
    /// Whether anything changes at all.
    pub(super) fn is_needed(&self) -> bool {
        self.covered > 0
    }

    /// Attributes of the pod that were replaced by another value.
    pub(super) fn overwritten(&self) -> u32 {
        self.overwritten
    }

    /// Takes the rest of the request as it is, and returns the length of the whole.
    pub(super) fn complete(&mut self, length: usize) -> usize {
        self.assembly.source(self.covered, length);
        self.covered = length;
        self.assembly.len()
    }

    /// Copies roughly `budget` bytes to `out` and says whether that was all.
    pub(super) fn write(&mut self, plan: &Plan, payload: &[u8], out: &mut Vec<u8>, budget: usize) -> bool {
        self.assembly.write(payload, plan.block(), out, budget)
    }

    fn is_present(&self, index: usize) -> bool {
        self.present[index / 64] >> (index % 64) & 1 == 1
    }

    fn set_present(&mut self, index: usize) {
        self.present[index / 64] |= 1 << (index % 64);
    }

    fn begin_envelope(&mut self, place: Place, plan: &Plan) {
        self.envelope = place;
        self.resources.clear();
        self.cuts.clear();
        self.present.clear();
        self.present.resize(plan.len().div_ceil(64), 0);
    }

    fn end_resource(&mut self, end: usize) -> Result<(), &'static str> {
        if self.resources.len() == RESOURCES_MAX {
            return Err("a resource is given more than 16 times");
        }
        self.resources.push((self.resource, end));
        Ok(())
    }

    fn end_attribute(&mut self, end: usize, plan: &Plan, payload: &[u8]) -> Result<(), &'static str> {
        let Some(index) = plan.find(&payload[self.key.0..self.key.1]) else { return Ok(()) };
        let Place { tag: start, body } = self.attribute;
        if !plan.is_attested(index) {
            self.set_present(index);
            return Ok(());
        }
        if !self.is_present(index) && payload[start..end] == plan.block()[plan.field(index)] {
            self.set_present(index);
            return Ok(());
        }
        // The same value may be written differently, for example with padded lengths, as the SDK for .NET does.
        let attribute = Field { number: number::ATTRIBUTE.into(), is_length: true, start, body, end };
        let is_other = text_value(payload, attribute) != Some(plan.value(index));
        self.overwritten = self.overwritten.saturating_add(u32::from(is_other));
        if let Some((_, last)) = self.cuts.last_mut()
            && *last == start
        {
            *last = end;
            return Ok(());
        }
        if self.cuts.len() == CUTS_MAX {
            return Err("attested attributes are given more than 256 times");
        }
        self.cuts.push((start, end));
        Ok(())
    }

    fn end_envelope(&mut self, end: usize, plan: &Plan) -> Result<(), &'static str> {
        let added: usize = self.missing(plan).map(|index| plan.field(index).len()).sum();
        if added == 0 && self.cuts.is_empty() {
            return Ok(());
        }
        if self.assembly.pieces() > PIECES_MAX {
            return Err("a request has too many resources to be enriched");
        }
        let Place { tag, body } = self.envelope;
        let first = self.resources.first().map_or(body, |(resource, _)| resource.tag);
        let last = self.resources.last().map_or(body, |(_, end)| *end);
        let kept: usize = self.resources.iter().map(|(resource, end)| end - resource.body).sum();
        let cut: usize = self.cuts.iter().map(|(start, end)| end - start).sum();
        let old: usize = self.resources.iter().map(|(resource, end)| end - resource.tag).sum();
        let new = kept - cut + added;

        let mut assembly = std::mem::take(&mut self.assembly);
        assembly.source(self.covered, tag);
        let header = assembly.open(length_tag(number::ENVELOPE));
        assembly.close(header, end - body - old + field_len(new));
        assembly.source(body, first);
        let header = assembly.open(length_tag(number::RESOURCE));
        assembly.close(header, new);
        let mut cuts = self.cuts.iter().peekable();
        for &(resource, end) in &self.resources {
            let mut pos = resource.body;
            while let Some((start, past)) = cuts.next_if(|(start, _)| *start < end) {
                assembly.source(pos, *start);
                pos = *past;
            }
            assembly.source(pos, end);
        }
        for index in self.missing(plan) {
            let field = plan.field(index);
            assembly.side(field.start, field.end);
        }
        for pair in self.resources.windows(2) {
            assembly.source(pair[0].1, pair[1].0.tag);
        }
        self.assembly = assembly;
        self.covered = last;
        Ok(())
    }

    fn missing(&self, plan: &Plan) -> impl Iterator<Item = usize> {
        (0..plan.len()).filter(|index| !self.is_present(*index))
    }
}

/// What the validator tells, turned into notes.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    enrichment: &'a mut Enrichment,
    plan: &'a Plan,
    payload: &'a [u8],
}

impl<'a> Watch<'a> {
    /// For one step.
    pub(super) fn new(enrichment: &'a mut Enrichment, plan: &'a Plan, payload: &'a [u8]) -> Self {
        Self { enrichment, plan, payload }
    }
}

impl Observer for Watch<'_> {
    fn enter(&mut self, message: Message, tag: usize, body: usize) {
        let place = Place { tag, body };
        match message {
            Message::Resource => self.enrichment.resource = place,
            Message::ResourceAttribute => {
                self.enrichment.attribute = place;
                self.enrichment.key = (body, body);
            }
            _ => self.enrichment.begin_envelope(place, self.plan),
        }
    }

    fn key(&mut self, start: usize, end: usize) {
        self.enrichment.key = (start, end);
    }

    fn leave(&mut self, message: Message, end: usize) -> Result<(), &'static str> {
        match message {
            Message::Resource => self.enrichment.end_resource(end),
            Message::ResourceAttribute => self.enrichment.end_attribute(end, self.plan, self.payload),
            _ => self.enrichment.end_envelope(end, self.plan),
        }
    }
}
