//! A pod as JSON, read with mistrust: what is absent, null or of another type is not there.

use serde_json::{Map, Value};

/// A pod or a pod template.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pod<'p>(&'p Value);

impl<'p> Pod<'p> {
    pub(super) fn new(pod: &'p Value) -> Self {
        Self(pod)
    }

    pub(super) fn has_metadata(&self) -> bool {
        self.0.get("metadata").is_some_and(Value::is_object)
    }

    pub(super) fn has_annotations(&self) -> bool {
        self.metadata("annotations").is_some()
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&'p str> {
        self.metadata("annotations")?.get(key)?.as_str()
    }

    pub(super) fn label(&self, key: &str) -> Option<&'p str> {
        self.metadata("labels")?.get(key)?.as_str()
    }

    fn metadata(&self, key: &str) -> Option<&'p Map<String, Value>> {
        self.0.get("metadata")?.get(key)?.as_object()
    }

    pub(super) fn spec(&self, key: &str) -> Option<&'p Value> {
        self.0.get("spec")?.get(key).filter(|value| !value.is_null())
    }

    /// `containers`, `initContainers` or `volumes`; none when absent.
    pub(super) fn list(&self, key: &str) -> Option<&'p Vec<Value>> {
        self.spec(key)?.as_array()
    }

    pub(super) fn volumes(&self) -> impl Iterator<Item = &'p Value> {
        self.list("volumes").into_iter().flatten()
    }

    /// Containers and init containers, native sidecars among them.
    pub(super) fn all_containers(&self) -> impl Iterator<Item = &'p Value> {
        self.list("containers").into_iter().chain(self.list("initContainers")).flatten()
    }

    /// Whether the pod as a whole names requests or limits (PodLevelResources).
    pub(super) fn has_resources(&self) -> bool {
        let named = |key| self.spec("resources")?.get(key)?.as_object().map(|map| !map.is_empty());
        ["requests", "limits"].into_iter().any(|key| named(key) == Some(true))
    }

    pub(super) fn is_windows(&self) -> bool {
        let os = self.spec("os").and_then(|os| os.get("name"));
        let selected = self.spec("nodeSelector").and_then(|selector| selector.get("kubernetes.io/os"));
        os.and_then(Value::as_str) == Some("windows") || selected.and_then(Value::as_str) == Some("windows")
    }
}

/// Of a container or volume.
pub(super) fn name(item: &Value) -> Option<&str> {
    item.get("name")?.as_str()
}
