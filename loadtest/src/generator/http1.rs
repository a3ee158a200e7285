//! The client's half of HTTP/1.1, one request at a time: bytes in, its end out; a request in, bytes out. No sockets, no clock.
//!
//! An answer is at most [`ANSWER_MAX`] bytes with its head, and is read from its beginning whenever some of it arrives: it nearly
//! always does so at once. What an answer's length is: [RFC 9112, 6.3](https://www.rfc-editor.org/rfc/rfc9112#section-6.3).

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use anyhow::{Context, Result, bail, ensure};
use httparse::{EMPTY_HEADER, Response, Status, parse_chunk_size};

use super::answer::{ANSWER_MAX, Answer, Ended, rejects_some};
use super::out::Out;
use crate::identity::Signal;

/// Header fields of an answer.
const FIELDS_MAX: usize = 100;

/// One connection.
#[derive(Debug)]
pub(super) struct Http1 {
    out: Out,
    input: Vec<u8>,
    /// The request that is under way.
    token: Option<usize>,
    is_closing: bool,
    heads: [String; 3],
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
struct Whole<'a> {
    status: u16,
    body: Cow<'a, [u8]>,
    /// The connection may have another request.
    keeps: bool,
    /// Its bytes.
    length: usize,
}

impl Http1 {
    /// A connection on which nothing was sent yet; `encoding` is that of the bodies.
    pub(super) fn new(encoding: Option<&'static str>, keep: bool) -> Self {
        let encoding = encoding.map(|name| format!("content-encoding: {name}\r\n")).unwrap_or_default();
        let connection = if keep { "" } else { "connection: close\r\n" };
        let heads = Signal::ALL.map(|signal| {
            format!(
                "POST {} HTTP/1.1\r\nhost: localhost:4318\r\nuser-agent: pillion-loadtest\r\n\
                 content-type: application/x-protobuf\r\n{encoding}{connection}content-length: ",
                signal.http_path()
            )
        });
        Self { out: Out::default(), input: Vec::new(), token: None, is_closing: false, heads }
    }

    /// Whether a request may be started.
    pub(super) fn is_open(&self) -> bool {
        self.token.is_none() && !self.is_closing
    }

    /// Whether it is of no use any more.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// What is to be sent.
    pub(super) fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    /// Starts a request, named `token` when it ends; only while [`Http1::is_open`].
    pub(super) fn start(&mut self, token: usize, signal: Signal, body: &[u8]) {
        self.token = Some(token);
        let out = self.out.bytes();
        out.extend_from_slice(self.heads[signal.index()].as_bytes());
        out.extend_from_slice(body.len().to_string().as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
        out.extend_from_slice(body);
    }

    /// Gives the request up and names it.
    pub(super) fn abandon(&mut self) -> Option<usize> {
        self.token.take()
    }

    /// Takes what has arrived; `at_end`: nothing will any more. After an error the connection is of no use any more; its request
    /// is still to be abandoned.
    pub(super) fn receive(&mut self, bytes: &[u8], at_end: bool, ends: &mut Vec<Ended>) -> Result<()> {
        self.input.extend_from_slice(bytes);
        self.is_closing |= at_end;
        if self.token.is_none() {
            ensure!(self.input.is_empty(), "the peer answered what nobody asked");
            return Ok(());
        }
        let Some(whole) = Whole::read(&self.input, at_end)? else {
            ensure!(!at_end, "the connection ended before the answer");
            ensure!(self.input.len() <= ANSWER_MAX, "the answer is longer than {ANSWER_MAX} bytes");
            return Ok(());
        };
        let answer = match whole.status {
            200 if rejects_some(&whole.body) => Answer::Partly,
            200 => Answer::Accepted,
            status => Answer::Refused(status.into()),
        };
        // An answer to a request that has not left yet leaves the rest of it behind.
        self.is_closing |= !whole.keeps || whole.length < self.input.len() || !self.out.is_empty();
        self.input.clear();
        ends.extend(self.token.take().map(|token| Ended { token, answer: Ok(answer) }));
        Ok(())
    }
}

impl<'a> Whole<'a> {
    /// `None`: it is not whole yet.
    fn read(input: &'a [u8], at_end: bool) -> Result<Option<Self>> {
        let mut skipped = 0;
        loop {
            let mut fields = [EMPTY_HEADER; FIELDS_MAX];
            let mut head = Response::new(&mut fields);
            let Status::Complete(length) = head.parse(&input[skipped..]).context("the answer's head")? else {
                return Ok(None);
            };
            let begin = skipped + length;
            let status = head.code.context("an answer without a status")?;
            // Only informs; the answer comes after it.
            if (100..200).contains(&status) {
                ensure!(status != 101, "the peer wants another protocol");
                skipped = begin;
                continue;
            }
            let body = Body::of(status, &head)?;
            let keeps = head.version == Some(1) && !body.ends_connection() && !says_close(&head);
            return Ok(body.read(&input[begin..], at_end)?.map(|(body, length)| Self {
                status,
                body,
                keeps,
                length: begin + length,
            }));
        }
    }
}

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    After(usize),
    Chunked,
    WithConnection,
}

impl Body {
    fn of(status: u16, head: &Response<'_, '_>) -> Result<Self> {
        if status == 204 || status == 304 {
            return Ok(Self::After(0));
        }
        if let Some(coding) = field(head, "transfer-encoding") {
            ensure!(coding.eq_ignore_ascii_case(b"chunked"), "the answer's transfer coding is not known");
            return Ok(Self::Chunked);
        }
        let Some(length) = field(head, "content-length") else { return Ok(Self::WithConnection) };
        let length = std::str::from_utf8(length).ok().and_then(|length| length.parse().ok());
        Ok(Self::After(length.context("the answer's content-length is not a number")?))
    }

    fn ends_connection(self) -> bool {
        self == Self::WithConnection
    }

    /// The body, and what it took of the input.
    fn read(self, input: &[u8], at_end: bool) -> Result<Option<(Cow<'_, [u8]>, usize)>> {
        Ok(match self {
            Self::After(length) => {
                ensure!(length <= ANSWER_MAX, "the answer is longer than {ANSWER_MAX} bytes");
                input.get(..length).map(|body| (body.into(), length))
            }
            Self::WithConnection => at_end.then_some((input.into(), input.len())),
            Self::Chunked => chunks(input)?.map(|(body, length)| (body.into(), length)),
        })
    }
}

fn chunks(input: &[u8]) -> Result<Option<(Vec<u8>, usize)>> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Ok(head) = parse_chunk_size(&input[at..]) else { bail!("a chunk without a size") };
        let Status::Complete((head, size)) = head else { return Ok(None) };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        ensure!(size <= ANSWER_MAX, "the answer is longer than {ANSWER_MAX} bytes");
        at += head;
        if size == 0 {
            let mut fields = [EMPTY_HEADER; FIELDS_MAX];
            let trailers = httparse::parse_headers(&input[at..], &mut fields).context("the answer's trailers")?;
            let Status::Complete((length, _)) = trailers else { return Ok(None) };
            return Ok(Some((body, at + length)));
        }
        let Some(chunk) = input.get(at..at + size + 2) else { return Ok(None) };
        let (chunk, end) = chunk.split_at(size);
        ensure!(end == b"\r\n", "a chunk without an end");
        body.extend_from_slice(chunk);
        at += size + 2;
    }
}

fn says_close(head: &Response<'_, '_>) -> bool {
    let options = field(head, "connection").unwrap_or_default();
    options.split(|byte| *byte == b',').any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

fn field<'a>(head: &Response<'_, 'a>, name: &str) -> Option<&'a [u8]> {
    head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}
