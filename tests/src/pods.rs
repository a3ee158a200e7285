//! Pods by chance, from a seed: every feature that the decision about injection looks at, alone and in company.
//!
//! All of them are valid, so that an API server takes them before and after. It never decides anything itself.

use fastrand::Rng;
use serde_json::{Map, Value, json};

/// A namespace for pods.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Its name.
    pub name: &'static str,
    /// The value of its label `pillion.dev/inject`.
    pub inject: Option<&'static str>,
    /// Of its annotation `sidecar.opentelemetry.io/inject`.
    pub collector: Option<&'static str>,
    /// It enforces the level `restricted` of PodSecurity.
    pub is_restricted: bool,
}

const fn space(name: &'static str, inject: Option<&'static str>, collector: Option<&'static str>) -> Space {
    Space { name, inject, collector, is_restricted: false }
}

/// The namespaces that are made for the pods.
pub const SPACES: [Space; 8] = [
    space("pillion-golden-silent", None, None),
    space("pillion-golden-enabled", Some("enabled"), None),
    space("pillion-golden-disabled", Some("disabled"), None),
    space("pillion-golden-odd", Some("true"), None),
    space("pillion-golden-empty", Some(""), None),
    space("pillion-golden-collected", Some("enabled"), Some("true")),
    space("pillion-golden-declined", Some("enabled"), Some("False")),
    Space { name: "pillion-golden-restricted", inject: Some("enabled"), collector: None, is_restricted: true },
];

/// Namespaces that are there, and left alone.
pub const PROTECTED: [Space; 2] = [space("kube-system", None, None), space("pillion-system", None, None)];

const WORDS: [&str; 7] = ["enabled", "enabled", "enabled", "enabled", "disabled", "true", ""];
const PORTS: [&str; 18] = [
    "14317", "14318", "5000", "1024", "65535", "4317", "4318", "1023", "80", "65536", "99999", "grpc", "", "04317",
    "+5000", " 5000", "5000 ", "1e4",
];
const COLLECTORS: [&str; 6] = ["true", "false", "False", "", "gateway", "observability/gateway"];
const CPUS: [[&str; 2]; 5] = [["1", "1000m"], ["0.5", "500m"], ["250m", "0.25"], ["2", "2e0"], ["0", "0"]];
const MEMORIES: [[&str; 2]; 5] =
    [["1Gi", "1024Mi"], ["128Mi", "134217728"], ["1M", "1e6"], ["1.5Gi", "1536Mi"], ["100k", "100000"]];

/// A pod of that name.
pub fn pod(rng: &mut Rng, name: &str) -> (Space, Value) {
    let space = match rng.u8(..) {
        0..=9 => PROTECTED[usize::from(rng.bool())],
        _ => SPACES[rng.usize(..SPACES.len())],
    };
    let mut metadata = json!({"name": name, "namespace": space.name});
    if let Some(annotations) = annotations(rng) {
        metadata["annotations"] = annotations;
    }
    match rng.u8(..10) {
        0 | 1 => metadata["labels"] = json!({"pillion.dev/inject": WORDS[rng.usize(..WORDS.len())]}),
        2 | 3 => metadata["labels"] = json!({"app": "cart"}),
        _ => {}
    }
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec(rng)});
    if space.is_restricted {
        restrict(&mut pod);
    } else {
        place(rng, &mut pod);
    }
    (space, pod)
}

fn annotations(rng: &mut Rng) -> Option<Value> {
    let mut map = Map::new();
    let mut put = |rng: &mut Rng, chance: u8, key: &str, values: &[&str]| {
        if rng.u8(..100) < chance {
            map.insert(key.to_owned(), values[rng.usize(..values.len())].into());
        }
    };
    put(rng, 55, "pillion.dev/inject", &WORDS);
    put(rng, 20, "pillion.dev/grpc-port", &PORTS);
    put(rng, 20, "pillion.dev/http-port", &PORTS);
    put(rng, 10, "sidecar.opentelemetry.io/inject", &COLLECTORS);
    put(rng, 10, "pillion.dev/status", &["injected", "copied from elsewhere"]);
    put(rng, 20, "example.org/else", &["", "x"]);
    (!map.is_empty() || rng.u8(..10) == 0).then(|| map.into())
}

fn spec(rng: &mut Rng) -> Value {
    // Of one pod or hostNetwork's check of ports refuses it; each port once.
    let mut ports = vec![4317, 4318, 14317, 5000, 8080, 9090];
    rng.shuffle(&mut ports);
    // Guaranteed pods are rare among the random ones, so half of the pods are either pinned throughout or mixed.
    let pinned = rng.u8(..4) == 0;
    let mut containers: Vec<Value> =
        (0..rng.usize(1..=3)).map(|index| container(rng, &format!("app-{index}"), &mut ports, pinned)).collect();
    let mut spec = json!({});
    if rng.u8(..3) == 0 {
        let mut init: Vec<Value> =
            (0..rng.usize(..3)).map(|index| container(rng, &format!("init-{index}"), &mut ports, pinned)).collect();
        for container in &mut init {
            if rng.bool() {
                container["restartPolicy"] = "Always".into();
            }
        }
        if rng.u8(..8) == 0 {
            let mut shim = container(rng, "pillion-shim", &mut ports, pinned);
            shim["restartPolicy"] = "Always".into();
            init.insert(rng.usize(..=init.len()), shim);
        }
        spec["initContainers"] = init.into();
    }
    if rng.u8(..60) == 0 && spec.get("initContainers").is_none() {
        containers.push(container(rng, "pillion-shim", &mut ports, pinned));
    }
    spec["containers"] = containers.into();
    if rng.bool() {
        let names: &[&str] = if rng.u8(..8) == 0 { &["data", "pillion"] } else { &["data", "pillion-data"] };
        let count = rng.usize(..=names.len());
        spec["volumes"] =
            names[names.len() - count..].iter().map(|name| json!({"name": name, "emptyDir": {}})).collect();
    }
    if rng.bool() {
        spec["automountServiceAccountToken"] = false.into();
    }
    match rng.u8(..40) {
        // The pod's own sum, with no room for anything else.
        0 | 1 if spec.get("initContainers").is_none() => {
            for container in spec["containers"].as_array_mut().into_iter().flatten() {
                container["resources"] = json!({});
            }
            let sum = json!({"cpu": "1m", "memory": "1Mi"});
            spec["resources"] =
                if rng.bool() { json!({"requests": sum, "limits": sum}) } else { json!({"limits": sum}) };
        }
        2 => spec["resources"] = json!({}),
        _ => {}
    }
    spec
}

fn container(rng: &mut Rng, name: &str, ports: &mut Vec<u16>, pinned: bool) -> Value {
    let mut container = json!({"name": name, "image": "localhost/app:1"});
    if rng.u8(..4) == 0 {
        let count = rng.usize(..=2).min(ports.len());
        let declared = ports.drain(..count).map(|port| match rng.u8(..4) {
            0 => json!({"containerPort": port, "protocol": "UDP"}),
            1 => json!({"containerPort": port, "protocol": "TCP"}),
            _ => json!({"containerPort": port}),
        });
        container["ports"] = declared.collect();
    }
    let resources = resources(rng, pinned);
    if !resources.is_null() {
        container["resources"] = resources;
    }
    container
}

/// Limits and requests in different spellings; a request never above its limit.
fn resources(rng: &mut Rng, pinned: bool) -> Value {
    if !pinned && rng.bool() {
        return if rng.bool() { Value::Null } else { json!({}) };
    }
    let (mut limits, mut requests) = (Map::new(), Map::new());
    for (resource, amounts, less) in [("cpu", CPUS, "0"), ("memory", MEMORIES, "1k")] {
        // The last cpu is zero, with which nothing is pinned: rare among those that are.
        let rare = usize::from(pinned && rng.u8(..6) > 0);
        let [one, other] = amounts[rng.usize(..amounts.len() - rare)];
        let request = match rng.u8(..if pinned { 2 } else { 4 }) {
            0 => None,
            1 => Some(other),
            2 => Some(less),
            _ => {
                requests.insert(resource.to_owned(), other.into());
                continue;
            }
        };
        limits.insert(resource.to_owned(), one.into());
        requests.extend(request.map(|request| (resource.to_owned(), Value::from(request))));
    }
    json!({"limits": limits, "requests": requests})
}

/// Where the pod runs, which most pods leave open.
fn place(rng: &mut Rng, pod: &mut Value) {
    let spec = &mut pod["spec"];
    match rng.u8(..24) {
        0 => spec["hostNetwork"] = true.into(),
        1 => spec["hostNetwork"] = false.into(),
        2 if spec.get("resources").is_none() => spec["os"] = json!({"name": "windows"}),
        3 => spec["os"] = json!({"name": "linux"}),
        4 => spec["nodeSelector"] = json!({"kubernetes.io/os": if rng.bool() { "windows" } else { "linux" }}),
        5 => {
            spec["nodeName"] = "nowhere".into();
            pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "1".into();
        }
        _ => {}
    }
}

fn restrict(pod: &mut Value) {
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            container["securityContext"] =
                json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
        }
    }
    pod["spec"]["securityContext"] =
        json!({"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}});
    if pod["spec"]["initContainers"].is_null() {
        pod["spec"].as_object_mut().expect("made as a map").remove("initContainers");
    }
}
