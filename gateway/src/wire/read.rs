//! What later stages ask of a request: how many items, and whose.

use super::fields::{Field, fields};
use super::schema::number;
use crate::base::Signal;

/// One `Resource{Spans,Metrics,Logs}` of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceView<'a> {
    /// Its `service.name`, where it is a string.
    pub service_name: Option<&'a str>,
    /// Spans, data points or log records in it.
    pub items: u32,
}

/// Spans, data points or log records in a request.
pub fn count(payload: &[u8], signal: Signal) -> u32 {
    envelopes(payload).map(|envelope| envelope_items(payload, envelope, signal)).fold(0, u32::saturating_add)
}

/// The resources of a request, in order, each with its items. One that is given twice appears twice.
pub fn resources(payload: &[u8], signal: Signal) -> impl Iterator<Item = ResourceView<'_>> {
    envelopes(payload).map(move |envelope| ResourceView {
        service_name: service_name(payload, envelope),
        items: envelope_items(payload, envelope, signal),
    })
}

fn envelopes(payload: &[u8]) -> impl Iterator<Item = Field> {
    fields(payload, 0, payload.len()).filter(|field| field.is(number::ENVELOPE))
}

/// The fields of `parent` with that number.
fn children(bytes: &[u8], parent: Field, number: u8) -> impl Iterator<Item = Field> {
    fields(bytes, parent.body, parent.end).filter(move |field| field.is(number))
}

fn envelope_items(bytes: &[u8], envelope: Field, signal: Signal) -> u32 {
    children(bytes, envelope, number::SCOPE)
        .flat_map(|scope| children(bytes, scope, number::ITEM))
        .map(|item| if signal == Signal::Metrics { points(bytes, item) } else { 1 })
        .fold(0, u32::saturating_add)
}

/// Data points of a `Metric`.
pub(super) fn points(bytes: &[u8], metric: Field) -> u32 {
    let points = fields(bytes, metric.body, metric.end)
        .filter(is_data)
        .flat_map(|data| children(bytes, data, number::POINT))
        .count();
    u32::try_from(points).unwrap_or(u32::MAX)
}

/// Whether a field of `Metric` is its `Gauge`, `Sum` or the like.
pub(super) fn is_data(field: &Field) -> bool {
    number::DATA.into_iter().any(|number| field.is(number))
}

fn service_name(bytes: &[u8], envelope: Field) -> Option<&str> {
    let attribute = children(bytes, envelope, number::RESOURCE)
        .flat_map(|resource| children(bytes, resource, number::ATTRIBUTE))
        .filter(|attribute| last_body(bytes, *attribute, 1) == Some(b"service.name"))
        .last()?;
    std::str::from_utf8(text_value(bytes, attribute)?).ok()
}

/// The value of a `KeyValue`, where it is a string.
pub(crate) fn text_value(bytes: &[u8], attribute: Field) -> Option<&[u8]> {
    // Several values are merged by protobuf's rules, and of a oneof the last member counts.
    let member = children(bytes, attribute, 2)
        .flat_map(|value| fields(bytes, value.body, value.end))
        .filter(|member| (1..=8).contains(&member.number))
        .last()?;
    member.is(1).then(|| &bytes[member.body..member.end])
}

fn last_body(bytes: &[u8], parent: Field, number: u8) -> Option<&[u8]> {
    children(bytes, parent, number).last().map(|field| &bytes[field.body..field.end])
}
