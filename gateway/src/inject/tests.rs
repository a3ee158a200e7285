//! One row for each reason and for each shape of the patch.

use serde_json::{Value, json};

use super::*;

fn namespace(label: Option<&str>) -> Namespace {
    let labels = label.map(|word| (INJECT.to_owned(), word.to_owned())).into_iter().collect();
    Namespace { name: "shop".to_owned(), labels, annotations: BTreeMap::new() }
}

/// An asking pod with these annotations beside.
fn annotated(more: Value) -> Value {
    let mut pod = json!({"metadata": {"annotations": {INJECT: "enabled"}}, "spec": {"containers": [{"name": "app"}]}});
    for (key, value) in more.as_object().expect("a map") {
        pod["metadata"]["annotations"][key] = value.clone();
    }
    pod
}

/// An asking pod with these fields in its spec.
fn with_spec(more: Value) -> Value {
    let mut pod = annotated(json!({}));
    for (key, value) in more.as_object().expect("a map") {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn patched(pod: &Value) -> Value {
    let Decision::Inject(patch) = decide(pod, &namespace(None), &Defaults::default()) else {
        panic!("not injected: {pod}")
    };
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).expect("the patch fits the pod that it was made for");
    pod
}

fn reason(pod: &Value, namespace: &Namespace) -> Option<Reason> {
    match decide(pod, namespace, &Defaults::default()) {
        Decision::Inject(_) => None,
        Decision::Skip(reason) => Some(reason),
    }
}

/// Scenario: every combination of words on the pod's annotation, its label, and the namespace's label.
/// Guarantees: `disabled` is final wherever it stands; else the pod's words decide, then the namespace's; an unknown word that
/// decides is a refusal, one that does not is nothing; silence is no consent.
#[test]
fn who_asks_is_decided_word_by_word() {
    let words = [None, Some("enabled"), Some("disabled"), Some("true"), Some("")];
    for annotation in words {
        for label in words {
            for inherited in words {
                let mut pod = json!({"metadata": {}, "spec": {"containers": []}});
                for (map, word) in [("annotations", annotation), ("labels", label)] {
                    if let Some(word) = word {
                        pod["metadata"][map] = json!({INJECT: word});
                    }
                }
                let all = [annotation, label, inherited];
                let own: Vec<_> = all[..2].iter().flatten().copied().collect();
                let deciding = if own.is_empty() { inherited.into_iter().collect() } else { own };
                let wanted = if all.contains(&Some("disabled")) {
                    Some("disabled")
                } else if deciding.is_empty() {
                    Some("not-asked")
                } else if deciding.iter().all(|word| *word == "enabled") {
                    None
                } else {
                    Some("unknown-word")
                };
                let found = reason(&pod, &namespace(inherited));
                assert_eq!(found.as_ref().map(Reason::code), wanted, "{all:?}");
            }
        }
    }
}

/// Scenario: one pod for each thing that can be in the way.
/// Guarantees: the reason is told, with what it is about; each reason has a row here or in the test of words.
#[test]
fn each_obstacle_has_its_reason() {
    let taken = |container: &str, port| Reason::PortTaken { container: container.to_owned(), port };
    let bad = |annotation, value: &str| Reason::BadPort { annotation, value: value.to_owned() };
    let ports = |port: Value| json!({"containers": [{"name": "app"}, {"name": "jaeger", "ports": [port]}]});
    for (pod, wanted) in [
        (annotated(json!({"kubernetes.io/config.mirror": ""})), Reason::MirrorPod),
        (with_spec(json!({"initContainers": [{"name": CONTAINER}]})), Reason::ShimPresent),
        (with_spec(json!({"containers": [{"name": CONTAINER}]})), Reason::ShimPresent),
        (with_spec(json!({"hostNetwork": true})), Reason::HostNetwork),
        (with_spec(json!({"os": {"name": "windows"}})), Reason::Windows),
        (with_spec(json!({"nodeSelector": {"kubernetes.io/os": "windows"}})), Reason::Windows),
        (annotated(json!({GRPC_PORT: "grpc"})), bad(GRPC_PORT, "grpc")),
        (annotated(json!({HTTP_PORT: "80"})), bad(HTTP_PORT, "80")),
        (annotated(json!({HTTP_PORT: "1023"})), bad(HTTP_PORT, "1023")),
        (annotated(json!({GRPC_PORT: "65536"})), bad(GRPC_PORT, "65536")),
        (annotated(json!({GRPC_PORT: "04317"})), bad(GRPC_PORT, "04317")),
        (annotated(json!({GRPC_PORT: "+4317"})), bad(GRPC_PORT, "+4317")),
        (annotated(json!({GRPC_PORT: ""})), bad(GRPC_PORT, "")),
        (annotated(json!({GRPC_PORT: "14317\n"})), bad(GRPC_PORT, "14317\n")),
        (annotated(json!({GRPC_PORT: "4318"})), Reason::EqualPorts(4318)),
        (annotated(json!({GRPC_PORT: "5000", HTTP_PORT: "5000"})), Reason::EqualPorts(5000)),
        (with_spec(json!({"volumes": [{"name": "a"}, {"name": VOLUME}]})), Reason::VolumeTaken),
        (annotated(json!({"sidecar.opentelemetry.io/inject": "true"})), Reason::CollectorAsked),
        (annotated(json!({"sidecar.opentelemetry.io/inject": "gateway"})), Reason::CollectorAsked),
        (with_spec(ports(json!({"containerPort": 4317}))), taken("jaeger", 4317)),
        (with_spec(ports(json!({"containerPort": 4318, "protocol": "TCP"}))), taken("jaeger", 4318)),
        (
            with_spec(json!({"initContainers": [{"name": "agent", "ports": [{"containerPort": 4317}]}]})),
            taken("agent", 4317),
        ),
    ] {
        assert_eq!(reason(&pod, &namespace(None)), Some(wanted), "{pod}");
    }
    for name in PROTECTED {
        let namespace = Namespace { name: name.to_owned(), ..Namespace::default() };
        assert_eq!(reason(&annotated(json!({})), &namespace), Some(Reason::ProtectedNamespace));
    }
    let mut asking = namespace(Some("enabled"));
    asking.annotations.insert("sidecar.opentelemetry.io/inject".to_owned(), "true".to_owned());
    assert_eq!(reason(&annotated(json!({})), &asking), Some(Reason::CollectorAsked));
}

/// Scenario: pods that look like an obstacle and are none.
/// Guarantees: ports of another protocol, ports made free by an annotation, and collectors that were declined are no reason.
#[test]
fn what_is_not_in_the_way_does_not_stop_it() {
    let jaeger = json!([{"name": "jaeger", "ports": [{"containerPort": 4317}, {"containerPort": 4318}]}]);
    let mut moved =
        annotated(json!({GRPC_PORT: "14317", HTTP_PORT: "65535", "sidecar.opentelemetry.io/inject": "true"}));
    moved["spec"]["containers"] = jaeger;
    for pod in [
        moved,
        with_spec(json!({"containers": [{"name": "a", "ports": [{"containerPort": 4317, "protocol": "UDP"}]}]})),
        with_spec(json!({"hostNetwork": false, "os": {"name": "linux"}, "volumes": null, "initContainers": null})),
        annotated(json!({"sidecar.opentelemetry.io/inject": "False"})),
        annotated(json!({GRPC_PORT: "4318", HTTP_PORT: "4317"})),
    ] {
        assert_eq!(reason(&pod, &namespace(None)), None, "{pod}");
    }
}

/// Scenario: a pod with nothing but a container, one with everything, and one whose lists are null.
/// Guarantees: the shim is the first init container, its volume is there, the rest is as it was; parents are made when absent.
#[test]
fn the_patch_fits_every_shape() {
    let full = json!({
        "metadata": {"annotations": {INJECT: "enabled", "a": "b", STATUS: "old"}, "name": "x"},
        "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "first"}], "volumes": [{"name": "v"}], "x": 1},
    });
    let bare = json!({"metadata": {"labels": {INJECT: "enabled"}}, "spec": {"containers": []}});
    let nulls = json!({
        "metadata": {"labels": {INJECT: "enabled"}, "annotations": null},
        "spec": {"containers": [], "initContainers": null, "volumes": null},
    });
    for pod in [full, bare, nulls] {
        let mut after = patched(&pod);
        let spec = after["spec"].as_object_mut().expect("a spec");
        let shim = spec["initContainers"].as_array_mut().expect("a list").remove(0);
        let volume = spec["volumes"].as_array_mut().expect("a list").pop().expect("a volume");
        assert_eq!((&shim["name"], &volume["name"]), (&json!(CONTAINER), &json!(VOLUME)));
        assert_eq!(after["metadata"]["annotations"][STATUS], INJECTED);
        for list in ["initContainers", "volumes"] {
            let was = pod["spec"].get(list).and_then(Value::as_array).cloned().unwrap_or_default();
            assert_eq!(after["spec"][list], Value::Array(was), "{list}");
        }
        assert_eq!(after["spec"]["containers"], pod["spec"]["containers"]);
        assert_eq!(after["metadata"]["annotations"].get("a"), pod["metadata"]["annotations"].get("a"));
    }
    let mut unnamed = json!({"spec": {"containers": []}});
    let Decision::Inject(patch) = decide(&unnamed, &namespace(Some("enabled")), &Defaults::default()) else {
        panic!("asked")
    };
    json_patch::patch(&mut unnamed, &patch).expect("metadata is made");
    assert_eq!(unnamed["metadata"]["annotations"][STATUS], INJECTED);
}

/// Scenario: the injected parts of a plain pod, whole.
/// Guarantees: they change only on purpose: every running deployment would roll.
#[test]
fn the_injected_parts_are_these() {
    let pod = patched(&annotated(json!({})));
    assert_eq!(
        pod["spec"]["initContainers"][0],
        json!({
            "name": "pillion-shim",
            "image": "pillion.dev/shim:0.1.0",
            "args": ["run", "--dir", "/run/pillion"],
            "restartPolicy": "Always",
            "resources": {"requests": {"cpu": "1m", "memory": "2Mi"}, "limits": {"memory": "16Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": true,
                "runAsGroup": 65532,
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumeMounts": [{"name": "pillion", "mountPath": "/run/pillion", "readOnly": true}],
        })
    );
    assert_eq!(
        pod["spec"]["volumes"],
        json!([{"name": "pillion", "csi": {"driver": "csi.pillion.dev", "readOnly": true}}])
    );
    let mounts = pod["spec"]["containers"][0].get("volumeMounts");
    assert_eq!(mounts, None, "the application has no business with the sockets");
}

/// Scenario: one port chosen, both chosen.
/// Guarantees: the shim and the driver hear of both ports, the default one too.
#[test]
fn chosen_ports_reach_shim_and_driver() {
    for (annotations, grpc, http) in [
        (json!({GRPC_PORT: "1024"}), "1024", "4318"),
        (json!({HTTP_PORT: "14318"}), "4317", "14318"),
        (json!({GRPC_PORT: "5317", HTTP_PORT: "5318"}), "5317", "5318"),
    ] {
        let pod = patched(&annotated(annotations));
        let args = &pod["spec"]["initContainers"][0]["args"];
        assert_eq!(*args, json!(["run", "--dir", "/run/pillion", "--grpc", grpc, "--http", http]));
        let attributes = &pod["spec"]["volumes"][0]["csi"]["volumeAttributes"];
        assert_eq!(*attributes, json!({"grpcPort": grpc, "httpPort": http}));
    }
}

/// Scenario: pods of each quality of service, and such that name resources for the pod as a whole.
/// Guarantees: Guaranteed stays Guaranteed; others get the small request; a pod's own sum is left to fit.
#[test]
fn quality_of_service_is_kept() {
    let pinned = json!({"requests": {"cpu": "200m", "memory": "16Mi"}, "limits": {"cpu": "200m", "memory": "16Mi"}});
    let small = json!({"requests": {"cpu": "1m", "memory": "2Mi"}, "limits": {"memory": "16Mi"}});
    let resources = |resources: Value| json!({"containers": [{"name": "a", "resources": resources}]});
    let both = json!({"cpu": "1", "memory": "1Gi"});
    for (spec, wanted) in [
        (resources(json!({"limits": both, "requests": {"cpu": "1000m", "memory": "1024Mi"}})), Some(&pinned)),
        (resources(json!({"limits": both})), Some(&pinned)),
        (resources(json!({"limits": {"cpu": 1, "memory": 1_000_000, "nvidia.com/gpu": 1}})), Some(&pinned)),
        (resources(json!({"limits": both, "requests": {"cpu": "500m", "memory": "1Gi"}})), Some(&small)),
        (resources(json!({"limits": {"memory": "1Gi"}})), Some(&small)),
        (resources(json!({"limits": {"cpu": "0", "memory": "1Gi"}})), Some(&small)),
        (resources(json!({"requests": both})), Some(&small)),
        (resources(json!({"limits": {"cpu": "many", "memory": "1Gi"}})), Some(&small)),
        (
            json!({"containers": [{"name": "a", "resources": {"limits": both}}], "initContainers": [{"name": "i"}]}),
            Some(&small),
        ),
        (json!({"resources": {"limits": both}}), None),
        (json!({"resources": {"limits": {}}}), Some(&small)),
    ] {
        let pod = with_spec(spec);
        assert_eq!(patched(&pod)["spec"]["initContainers"][0].get("resources"), wanted, "{pod}");
    }
}

/// Scenario: every reason.
/// Guarantees: who asked and cannot have it is told in the pod's status, with a next step on a terminal; who did not ask, and
/// what must not be touched, is not; nobody is told twice.
#[test]
fn whoever_asked_is_told_why_not() {
    let silent = ["not-asked", "disabled", "protected-namespace", "mirror-pod", "shim-present"];
    let mut codes = std::collections::BTreeSet::new();
    for reason in Reason::all() {
        assert!(codes.insert(reason.code()), "{reason:?}");
        assert_eq!(reason.is_noted(), !silent.contains(&reason.code()), "{reason:?}");
        let mut pod = annotated(json!({}));
        match note(&pod, &reason) {
            None => assert!(!reason.is_noted()),
            Some(patch) => {
                json_patch::patch(&mut pod, &patch).expect("an annotation can be added");
                let status = format!("skipped: {}: {}", reason.code(), reason.words());
                assert_eq!(pod["metadata"]["annotations"][STATUS], status);
                assert_eq!(pod["spec"], annotated(json!({}))["spec"]);
            }
        }
    }
}

/// Scenario: JSON that is no pod.
/// Guarantees: no panic, whatever stands where.
#[test]
fn what_is_no_pod_does_no_harm() {
    for pod in [
        json!(null),
        json!([]),
        json!({"metadata": [], "spec": "x"}),
        json!({"metadata": {"annotations": {INJECT: 1}}, "spec": {"containers": {}, "volumes": [1, null], "initContainers": [[]]}}),
        with_spec(
            json!({"containers": [{"ports": [{"containerPort": -1}, {"containerPort": "4317"}, 5], "resources": []}]}),
        ),
    ] {
        let namespace = namespace(Some("enabled"));
        if let Decision::Skip(reason) = decide(&pod, &namespace, &Defaults::default()) {
            let _ = note(&pod, &reason);
        }
    }
}

/// Scenario: the admission policy as text, beside the function.
/// Guarantees: each reason that a pod is told stands in it word by word, and it injects the image of this release. (What it decides
/// is compared on an API server, by `pillion-golden`.)
#[test]
fn the_policy_has_the_same_words() {
    let policy = include_str!("../../../deploy/yaml/50-inject.yaml").replace("\\'", "'");
    for reason in Reason::all().iter().filter(|reason| reason.is_noted()) {
        let words = format!("'{}: {}'", reason.code(), reason.words());
        assert!(policy.contains(&words), "{words}");
    }
    for text in [&Defaults::default().image, INJECT, GRPC_PORT, HTTP_PORT, STATUS, CONTAINER, VOLUME, DRIVER] {
        assert!(policy.contains(text), "{text}");
    }
    let readme = include_str!("../../../deploy/README.md");
    for reason in Reason::all().iter().filter(|reason| reason.is_noted()) {
        assert!(readme.contains(&format!("| `{}` |", reason.code())), "deploy/README.md: {}", reason.code());
    }
}
