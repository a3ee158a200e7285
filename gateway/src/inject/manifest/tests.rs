//! Real-looking streams against golden files, every style of YAML around the shim, and mistakes.

use serde_json::json;

use super::*;
use crate::inject::{CONTAINER, INJECT, STATUS, VOLUME};

fn injected(text: &str) -> Injected {
    inject(text, &Surroundings::default()).unwrap_or_else(|errors| panic!("{errors:?}\n{text}"))
}

fn mistakes(text: &str) -> Vec<String> {
    match inject(text, &Surroundings::default()) {
        Ok(injected) => panic!("accepted:\n{}", injected.text),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

fn outcomes(injected: &Injected) -> Vec<(usize, &str, &str)> {
    let word = |report: &Report| match &report.outcome {
        Outcome::Injected => "injected",
        Outcome::Passed => "passed",
        Outcome::Skipped(reason) => reason.code(),
    };
    injected.reports.iter().map(|report| (report.document, report.object.as_str(), word(report))).collect()
}

/// Scenario: a shop with a namespace that opted in, jobs in a List, and a pod in JSON, each against the text that was looked at
/// by a person. `PILLION_BLESS=1` writes them anew.
/// Guarantees: the shim is written in the style of its surroundings; every byte that was there stays, comments and octal
/// modes included; a second run changes nothing.
#[test]
fn workloads_become_the_golden_files() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/inject/manifest/testdata");
    for (name, wanted) in [
        (
            "shop.yaml",
            &[
                (1, "Namespace shop", "passed"),
                (2, "Deployment shop/cart", "injected"),
                (3, "Service shop/cart", "passed"),
                (4, "Deployment shop/jaeger", "port-taken"),
            ][..],
        ),
        ("batch.yaml", &[(1, "CronJob shop/report", "injected"), (1, "Job shop/import", "not-asked")]),
        ("pod.json", &[(1, "Pod default/probe", "injected")]),
    ] {
        let text = std::fs::read_to_string(folder.join(name)).expect("it is in the repository");
        let result = injected(&text);
        assert_eq!(outcomes(&result), wanted, "{name}");
        let golden = folder.join(name.replace('.', ".injected."));
        if std::env::var_os("PILLION_BLESS").is_some() {
            std::fs::write(&golden, &result.text).expect("the golden file can be written");
        }
        assert_eq!(result.text, std::fs::read_to_string(&golden).expect("it is in the repository"), "{name}");
        assert_eq!(injected(&result.text).text, result.text, "{name}: a second run");
        if name.ends_with(".json") {
            let parsed = serde_json::from_str(&result.text).expect("JSON stays JSON");
            assert_eq!(to_json(&result.text), Ok(parsed), "{name}");
        }
        let mut after = result.text.chars();
        let kept = text.replace("\"old\"", "").chars().all(|character| after.any(|other| other == character));
        assert!(kept, "{name}: something that was there is gone");
    }
}

/// Scenario: the lists and maps that the shim is put into, absent, null, empty, in block and in flow style, indented or not, with
/// comments, quotes, block scalars, other alphabets and Windows line ends around.
/// Guarantees: what is written parses to the patched pod. (The check inside would refuse to write otherwise; here it must not.)
#[test]
fn the_shim_fits_into_every_style() {
    let annotations = [
        "",
        "  annotations:\n",
        "  annotations: ~\n",
        "  annotations: {}\n",
        "  annotations: {a: b}   # c\n",
        "  annotations:\n    # why\n    a: \"b\" # c\n",
        "  annotations: {\"pillion.dev/status\": \"old\"} # c\n",
        "  annotations:\n    pillion.dev/status: 'it''s old' # c\n    a: >-\n      folded\n      text\n",
    ];
    let lists = [
        "",
        "  KEY:\n",
        "  KEY: null\n",
        "  KEY: []\n",
        "  KEY: [{name: x}]\n",
        "  KEY: [\n    {name: x}, # one\n  ]\n",
        "  KEY:\n  - name: x\n",
        "  KEY:\n    # why\n    - name: x # it\n      image: \"é\" # c\n",
        "  KEY:\n  - {name: x}\n\n",
        "  KEY:\n  -\n    name: x\n    b: |\n      # no comment\n      - text\n",
    ];
    let mut tried = 0;
    for annotations in annotations {
        for first in lists {
            for second in lists {
                for end in ["", "  containers: []\n", "  containers:\n  - name: é\n    args: [\"-x\"]\n# end"] {
                    let head =
                        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: ü\n  labels: {pillion.dev/inject: enabled}\n";
                    let (front, back) = if end.is_empty() { ("  containers: []\n", "") } else { ("", end) };
                    let text = format!(
                        "{head}{annotations}spec:\n{front}{}{}{back}",
                        first.replace("KEY", "volumes"),
                        second.replace("KEY", "initContainers")
                    );
                    let windows = (first == second).then(|| text.replace('\n', "\r\n"));
                    for text in windows.into_iter().chain([text]) {
                        let after = injected(&text).text;
                        assert_eq!(after.matches('#').count(), text.matches('#').count(), "a comment is lost: {text}");
                        let json = to_json(&after).expect("it was checked");
                        assert_eq!(json["spec"]["initContainers"][0]["name"], CONTAINER, "{text}");
                        let volumes = json["spec"]["volumes"].as_array().and_then(|list| list.last());
                        assert_eq!(volumes.map(|volume| &volume["name"]), Some(&json!(VOLUME)), "{text}");
                        assert_eq!(json["metadata"]["annotations"][STATUS], "injected", "{text}");
                        tried += 1;
                    }
                }
            }
        }
    }
    assert_eq!(tried, 8 * 10 * (10 + 1) * 3);
}

/// Scenario: the annotation stands on the Deployment, on the CronJob, on its job template; once as `disabled` in a namespace
/// that opted in.
/// Guarantees: the person is told where it stands and where it belongs, and the command's status says so.
#[test]
fn a_misplaced_annotation_is_pointed_out() {
    let deployment = |word| {
        format!(
            "kind: Deployment\nmetadata: {{name: a, annotations: {{{INJECT}: {word}}}}}\nspec: {{template: {{spec: {{containers: []}}}}}}\n"
        )
    };
    let cron = "kind: CronJob\nmetadata: {name: c}\nspec:\n  jobTemplate:\n    metadata: {labels: {pillion.dev/inject: enabled}}\n    spec:\n      template:\n        spec: {containers: []}\n";
    let result = injected(&format!("{}---\n{cron}", deployment("enabled")));
    assert_eq!(outcomes(&result), [(1, "Deployment default/a", "not-asked"), (2, "CronJob default/c", "not-asked")]);
    let places: Vec<_> = result
        .reports
        .iter()
        .filter_map(|report| report.misplaced.as_ref())
        .map(|m| (m.found.as_str(), m.wanted.as_str()))
        .collect();
    assert_eq!(
        places,
        [
            ("metadata.annotations", "spec.template.metadata.annotations"),
            ("spec.jobTemplate.metadata.labels", "spec.jobTemplate.spec.template.metadata.annotations"),
        ]
    );
    assert!(result.reports.iter().all(Report::is_refusal));

    let namespace_labels = BTreeMap::from([(INJECT.to_owned(), "enabled".to_owned())]);
    let surroundings = Surroundings { namespace_labels, ..Surroundings::default() };
    let result = inject(&deployment("disabled"), &surroundings).expect("no mistake");
    assert_eq!(outcomes(&result), [(1, "Deployment default/a", "injected")]);
    assert!(result.reports[0].is_refusal(), "the person believes that it is disabled");
}

/// Scenario: objects of a namespace that the stream holds, of one that it does not, and of none.
/// Guarantees: the stream's own labels win over those of the command line; objects without a namespace go where it says.
#[test]
fn namespaces_say_their_labels() {
    let text = "kind: Namespace\nmetadata: {name: quiet}\n---\nkind: Pod\nmetadata: {name: a, namespace: quiet}\nspec: {containers: []}\n---\n\
                kind: Pod\nmetadata: {name: b}\nspec: {containers: []}\n---\nkind: Pod\nmetadata: {name: c, namespace: kube-system}\nspec: {containers: []}\n";
    let surroundings = Surroundings {
        namespace: "other".to_owned(),
        namespace_labels: BTreeMap::from([(INJECT.to_owned(), "enabled".to_owned())]),
        defaults: Defaults::default(),
    };
    let result = inject(text, &surroundings).expect("no mistake");
    assert_eq!(
        outcomes(&result),
        [
            (1, "Namespace quiet", "passed"),
            (2, "Pod quiet/a", "not-asked"),
            (3, "Pod other/b", "injected"),
            (4, "Pod kube-system/c", "protected-namespace"),
        ]
    );
}

/// Scenario: mistakes of every kind, two of them in one stream.
/// Guarantees: all are told, each with line, document, path and a next step; nothing is written.
#[test]
fn mistakes_name_their_place_and_the_next_step() {
    let pod = |metadata: &str, spec: &str| format!("kind: Pod\nmetadata: {{{INJECT_LABEL}{metadata}}}\n{spec}\n");
    const INJECT_LABEL: &str = "labels: {pillion.dev/inject: enabled}";
    for (text, parts) in [
        ("a: [1\n".to_owned(), &["line 2, document 1", "no valid YAML"][..]),
        ("# one\n---\nkind: A\n---\nkind: B\nx: {\n".to_owned(), &["document 2", "no valid YAML"]),
        ("just text".to_owned(), &["no Kubernetes object", "apiVersion"]),
        ("a: 1\n".to_owned(), &["kind is missing"]),
        ("kind: Deployment\nmetadata: {name: d}\nspec: {}\n".to_owned(), &["Deployment d: spec.template is missing"]),
        (pod("", "spec: &s {containers: []}\nx: *s"), &["line 3", "anchors, aliases"]),
        (pod("", "spec: {containers: [], containers: []}"), &["containers: the key stands here for the second time"]),
        (pod("", "spec: {volumes: []}"), &["spec.containers: is missing"]),
        (pod("", "x: 1"), &["spec: is missing"]),
        (pod("", "spec: {containers: [], volumes: {}}"), &["spec.volumes: is no list"]),
        (pod(", annotations: []", "spec: {containers: []}"), &["metadata.annotations: is no mapping"]),
        (
            pod(", annotations: {pillion.dev/grpc-port: 14317}", "spec: {containers: []}"),
            &["metadata.annotations: pillion.dev/grpc-port: 14317 is no text", "put the value into quotes"],
        ),
        ("kind: Pod\nmetadata: {annotations: {pillion.dev/inject: yes}}\nspec: {}\n".to_owned(), &["true is no text"]),
        ("a: 1\n...\nb: 2\n".to_owned(), &["a second document"]),
        ("? [a]\n: b\n".to_owned(), &["a key must be a text"]),
        ("[".repeat(10_000), &["recursion limit exceeded"]),
        (format!("{}{}", "[".repeat(65), "]".repeat(65)), &["nested more than 64 deep"]),
    ] {
        let found = mistakes(&text);
        assert!(parts.iter().all(|part| found[0].contains(part)) && found[0].contains("; "), "{found:?}");
    }
    let two = mistakes("kind: Deployment\nmetadata: {name: d}\n---\nb: 1\n");
    assert!(two.len() == 2 && two[1].starts_with("line 4, document 2: kind is missing"), "{two:?}");
}

/// Scenario: streams that hold nothing, or nothing to inject into, with comments, directives, anchors and odd ends.
/// Guarantees: they come out as they went in.
#[test]
fn what_makes_no_pods_passes_byte_by_byte() {
    for text in [
        "",
        "---\n",
        "# nothing\n---\n---\n# again\n...\n",
        "\u{feff}kind: A\n",
        "%YAML 1.2\n---\nkind: A\n",
        "kind: A\nx: &a {b: 1}\ny: *a\n---   \nkind: B\r\nz: !t 1",
        "--- # first\nkind: A\ndata: |\n  --- no separator\n",
    ] {
        assert_eq!(injected(text).text, text);
    }
    assert_eq!(
        to_json("kind: A\nx: 0644\n---\nkind: B\n").expect("valid"),
        json!({
            "apiVersion": "v1", "kind": "List", "items": [{"kind": "A", "x": 420}, {"kind": "B"}],
        })
    );
}
