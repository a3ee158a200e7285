//! Which objects of a document make pods, and where their templates are.

use std::collections::BTreeMap;

use serde_json::Value;

use super::tree::{Kind, Node, Step, Tree};
use super::{Flaw, Misplaced};
use crate::inject::{INJECT, Namespace};

/// An object of the stream.
#[derive(Debug)]
pub(super) struct Workload<'t> {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    /// Its name alone says which one it is.
    pub(super) is_cluster_wide: bool,
    /// The pod or pod template; none where the object makes no pods.
    pub(super) template: Option<&'t Node<'t>>,
    /// The way to the template from the document's root.
    pub(super) path: Vec<Step>,
    /// Objects above the template that have metadata of their own, and the path to them, for people.
    owners: Vec<(&'static str, &'t Node<'t>)>,
}

/// The way from an object to its pod template.
fn template_path(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "Pod" => &[],
        "ReplicaSet" | "ReplicationController" | "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => {
            &["spec", "template"]
        }
        "CronJob" => &["spec", "jobTemplate", "spec", "template"],
        _ => return None,
    })
}

/// The objects of a document: itself, or the items of a List.
pub(super) fn find<'t>(tree: &'t Tree<'t>) -> Vec<Result<Workload<'t>, Flaw>> {
    objects(&tree.root).into_iter().map(|(path, object)| read(object, path)).collect()
}

fn objects<'t>(root: &'t Node<'t>) -> Vec<(Vec<Step>, &'t Node<'t>)> {
    match (kind(root), root.child("items")) {
        (Some(kind), Some(items)) if kind.ends_with("List") => {
            let path = |index| vec![Step::Key("items"), Step::Item(index)];
            items.items().iter().enumerate().map(|(index, item)| (path(index), item)).collect()
        }
        _ => vec![(Vec::new(), root)],
    }
}

fn kind<'t>(object: &'t Node<'t>) -> Option<&'t str> {
    object.child("kind")?.text()
}

fn read<'t>(object: &'t Node<'t>, mut path: Vec<Step>) -> Result<Workload<'t>, Flaw> {
    let flaw = |message: &str| Flaw {
        at: object.start,
        message: message.to_owned(),
        help: "every document is an object with apiVersion, kind and metadata",
    };
    if !matches!(object.kind, Kind::Mapping { .. }) {
        return Err(flaw("no Kubernetes object"));
    }
    let kind = kind(object).ok_or_else(|| flaw("kind is missing"))?;
    let metadata = |key| Some(object.child("metadata")?.child(key)?.text()?.to_owned());
    let name = metadata("name").or_else(|| metadata("generateName")).unwrap_or_else(|| "(without a name)".to_owned());
    let namespace = metadata("namespace");
    let steps = template_path(kind);
    let is_cluster_wide = steps.is_none() && namespace.is_none();
    let mut node = object;
    let mut owners = Vec::new();
    for (depth, step) in steps.into_iter().flatten().enumerate() {
        if node.child("metadata").is_some() {
            owners.push((if depth == 0 { "" } else { "spec.jobTemplate." }, node));
        }
        node = node.child(step).ok_or_else(|| Flaw {
            at: node.start,
            message: format!("{kind} {name}: {} is missing", steps.unwrap_or_default()[..=depth].join(".")),
            help: "a workload has a pod template: see kubectl explain",
        })?;
        path.push(Step::Key(step));
    }
    let template = steps.map(|_| node);
    Ok(Workload { kind: kind.to_owned(), name, namespace, is_cluster_wide, template, path, owners })
}

impl Workload<'_> {
    /// Where the annotation or label stands on an owner, while the template says nothing.
    pub(super) fn misplaced(&self) -> Option<Misplaced> {
        let word =
            |node: &Node<'_>, map: &str| node.child("metadata")?.child(map)?.child(INJECT).map(|node| node.start);
        let maps = ["annotations", "labels"];
        if self.template.is_some_and(|template| maps.iter().any(|map| word(template, map).is_some())) {
            return None;
        }
        let (path, owner, map) = self
            .owners
            .iter()
            .find_map(|(path, owner)| Some((path, owner, maps.iter().find(|map| word(owner, map).is_some())?)))?;
        let steps = template_path(&self.kind).unwrap_or_default().join(".");
        let value = owner.child("metadata").and_then(|metadata| metadata.child(map)?.child(INJECT)?.text());
        Some(Misplaced {
            value: value.unwrap_or_default().to_owned(),
            found: format!("{path}metadata.{map}"),
            wanted: format!("{steps}.metadata.annotations"),
        })
    }
}

/// What the stream itself says about its namespaces.
pub(super) fn namespaces<'t>(trees: impl Iterator<Item = &'t Tree<'t>>) -> BTreeMap<String, Namespace> {
    let texts = |object: &Node<'_>, map: &str| -> BTreeMap<String, String> {
        let entries =
            object.child("metadata").and_then(|metadata| metadata.child(map)).map(Node::entries).unwrap_or_default();
        entries.iter().filter_map(|entry| Some((entry.key.to_string(), entry.value.text()?.to_owned()))).collect()
    };
    let mut found = BTreeMap::new();
    for object in trees.flat_map(|tree| objects(&tree.root)).map(|(_, object)| object) {
        if kind(object) != Some("Namespace") {
            continue;
        }
        let Some(name) = object.child("metadata").and_then(|metadata| metadata.child("name")?.text()) else { continue };
        let (labels, annotations) = (texts(object, "labels"), texts(object, "annotations"));
        found.insert(name.to_owned(), Namespace { name: name.to_owned(), labels, annotations });
    }
    found
}

/// Refuses what an API server would refuse as well, where the decision has read over it.
pub(super) fn check_shape(template: &Node<'_>, pod: &Value) -> Result<(), Flaw> {
    let help = "see kubectl explain pod";
    let flaw = |path: &str, what: &str, help| {
        let mut node = template;
        for step in path.split('.') {
            node = node.child(step).unwrap_or(node);
        }
        Err(Flaw { at: node.start, message: format!("{path}: {what}"), help })
    };
    let at = |path: &[&str]| path.iter().try_fold(pod, |value, step| value.get(step));
    if !at(&["spec"]).is_some_and(Value::is_object) {
        return flaw("spec", "is missing, or no mapping", help);
    }
    if !at(&["spec", "containers"]).is_some_and(Value::is_array) {
        return flaw("spec.containers", "is missing, or no list", help);
    }
    for list in ["initContainers", "volumes"] {
        if !at(&["spec", list]).is_none_or(|value| value.is_array() || value.is_null()) {
            return flaw(&format!("spec.{list}"), "is no list", help);
        }
    }
    if !at(&["metadata"]).is_none_or(|value| value.is_object() || value.is_null()) {
        return flaw("metadata", "is no mapping", help);
    }
    if !at(&["metadata", "annotations"]).is_none_or(|value| value.is_object() || value.is_null()) {
        return flaw("metadata.annotations", "is no mapping", help);
    }
    Ok(())
}

/// Annotations and labels that are no texts: unquoted numbers and booleans, which decide nothing and which no API server takes.
pub(super) fn check_words(template: &Node<'_>, pod: &Value) -> Result<(), Flaw> {
    for map in ["annotations", "labels"] {
        let values = pod.get("metadata").and_then(|metadata| metadata.get(map)).and_then(Value::as_object);
        for (key, value) in values.into_iter().flatten() {
            if key.starts_with("pillion.dev/") && !value.is_string() {
                let node = template.child("metadata").and_then(|metadata| metadata.child(map)?.entry(key));
                let at = node.map_or(template.start, |entry| entry.key_start);
                let message = format!("metadata.{map}: {key}: {value} is no text");
                return Err(Flaw { at, message, help: "put the value into quotes" });
            }
        }
    }
    Ok(())
}
