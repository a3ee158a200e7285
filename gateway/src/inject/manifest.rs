//! Manifests: a stream of YAML or JSON documents in, the same stream with shims out.
//!
//! Owns the text. It never re-writes it: what [`super::decide`] asks for is inserted into the bytes that were read, so that
//! comments, order and spelling stay (`0644` is octal to kubectl and would not be after a round trip through another library).
//! The result is parsed again and compared with the patched object; where they differ, nothing is printed.
//!
//! ```text
//! workloads   Pod; ReplicaSet, ReplicationController, Deployment, StatefulSet, DaemonSet, Job; CronJob; in a List as well
//! others      pass as they are; a Namespace says its labels to what comes into it
//! ```

mod scalar;
mod splice;
#[cfg(test)]
mod tests;
mod tree;
mod workload;

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Decision, Defaults, Namespace, Reason, decide};
use tree::Tree;
use workload::Workload;

/// What is known beside the stream.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Where objects without a namespace go; empty means `default`.
    pub namespace: String,
    /// Labels of namespaces that the stream itself does not hold.
    pub namespace_labels: BTreeMap<String, String>,
    /// Of the cluster.
    pub defaults: Defaults,
}

/// A stream with its shims.
#[derive(Debug)]
pub struct Injected {
    /// The text that was read, with insertions.
    pub text: String,
    /// What became of each object, in order.
    pub reports: Vec<Report>,
}

/// What became of one object.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    /// From 1, as `---` counts them.
    pub document: usize,
    /// For example `Deployment shop/cart`.
    pub object: String,
    /// What was done.
    pub outcome: Outcome,
    /// Where [`super::INJECT`] stands without effect, and where it belongs.
    pub misplaced: Option<Misplaced>,
}

/// What was done with an object.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has a shim now.
    Injected,
    /// It has none.
    Skipped(Reason),
    /// It makes no pods.
    Passed,
}

/// An annotation or label on the owner of a pod template instead of the template.
#[derive(Debug, PartialEq, Eq)]
pub struct Misplaced {
    /// What it says.
    pub value: String,
    /// Where it stands.
    pub found: String,
    /// Where it is read.
    pub wanted: String,
}

/// A mistake in the stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, document {document}: {message}; {help}")]
pub struct ManifestError {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub document: usize,
    /// Path and what is wrong.
    pub message: String,
    /// The next step.
    pub help: &'static str,
}

impl Report {
    /// Whether somebody asked for a shim and did not get it.
    pub fn is_refusal(&self) -> bool {
        self.misplaced.is_some() || matches!(&self.outcome, Outcome::Skipped(reason) if reason.is_noted())
    }
}

/// Injects into every workload of the stream that asks for it. All mistakes are reported, and then nothing is done.
pub fn inject(text: &str, surroundings: &Surroundings) -> Result<Injected, Vec<ManifestError>> {
    let documents = documents(text)?;
    let namespaces = workload::namespaces(documents.iter().map(|document| &document.tree));
    let (mut reports, mut edits, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for document in &documents {
        for workload in workload::find(&document.tree) {
            let outcome =
                workload.and_then(|workload| inject_one(&workload, document, &namespaces, surroundings, text));
            match outcome {
                Ok((report, mut more)) => {
                    reports.push(report);
                    edits.append(&mut more);
                }
                Err(flaw) => errors.push(document.error(text, flaw)),
            }
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let text = splice::apply(text, edits);
    Ok(Injected { text, reports })
}

/// The stream as JSON: the object, or a List of several.
pub fn to_json(text: &str) -> Result<Value, Vec<ManifestError>> {
    let documents = documents(text)?;
    let mut errors = Vec::new();
    let mut objects = Vec::new();
    for document in &documents {
        match document.tree.to_json() {
            Ok(object) => objects.push(object),
            Err(flaw) => errors.push(document.error(text, flaw)),
        }
    }
    match (errors.is_empty(), objects.len()) {
        (false, _) => Err(errors),
        (true, 1) => Ok(objects.remove(0)),
        (true, _) => Ok(serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects})),
    }
}

/// Something wrong at a byte of the stream.
#[derive(Debug, PartialEq, Eq)]
struct Flaw {
    at: usize,
    message: String,
    help: &'static str,
}

struct Document<'t> {
    number: usize,
    tree: Tree<'t>,
}

impl Document<'_> {
    fn error(&self, text: &str, flaw: Flaw) -> ManifestError {
        error(text, self.number, flaw)
    }
}

fn error(text: &str, document: usize, flaw: Flaw) -> ManifestError {
    let line = text.as_bytes()[..flaw.at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
    ManifestError { line, document, message: flaw.message, help: flaw.help }
}

/// Parses every document that has content.
fn documents(text: &str) -> Result<Vec<Document<'_>>, Vec<ManifestError>> {
    let mut errors = Vec::new();
    let mut documents = Vec::new();
    for (number, range) in (1..).zip(tree::split(text)) {
        match Tree::parse(text, range) {
            Ok(Some(tree)) => documents.push(Document { number, tree }),
            Ok(None) => {}
            Err(flaw) => errors.push(error(text, number, flaw)),
        }
    }
    if errors.is_empty() { Ok(documents) } else { Err(errors) }
}

type Edits = Vec<splice::Edit>;

fn inject_one(
    workload: &Workload<'_>,
    document: &Document<'_>,
    namespaces: &BTreeMap<String, Namespace>,
    surroundings: &Surroundings,
    text: &str,
) -> Result<(Report, Edits), Flaw> {
    let name = workload.namespace.clone().unwrap_or_else(|| match surroundings.namespace.as_str() {
        "" => "default".to_owned(),
        name => name.to_owned(),
    });
    let object = match workload.is_cluster_wide {
        true => format!("{} {}", workload.kind, workload.name),
        false => format!("{} {name}/{}", workload.kind, workload.name),
    };
    let mut report = Report { document: document.number, object, outcome: Outcome::Passed, misplaced: None };
    let Some(template) = &workload.template else { return Ok((report, Vec::new())) };
    report.misplaced = workload.misplaced();
    let namespace = namespaces.get(&name).cloned().unwrap_or_else(|| Namespace {
        name,
        labels: surroundings.namespace_labels.clone(),
        annotations: BTreeMap::new(),
    });
    let pod = template.to_json()?;
    workload::check_words(template, &pod)?;
    match decide(&pod, &namespace, &surroundings.defaults) {
        Decision::Skip(reason) => {
            report.outcome = Outcome::Skipped(reason);
            Ok((report, Vec::new()))
        }
        Decision::Inject(patch) => {
            workload::check_shape(template, &pod)?;
            let place = splice::Place { stream: text, document: document.tree.range.clone(), path: &workload.path };
            let edits = splice::template(&place, template, &pod, &patch)?;
            report.outcome = Outcome::Injected;
            Ok((report, edits))
        }
    }
}
