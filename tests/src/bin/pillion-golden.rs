//! `pillion-golden`: the admission policy decides as the function does, on a real API server.
//!
//! Makes some hundred pods from a seed and sends each as a dry run: as it is before the policy is installed, patched by
//! [`pillion_gateway::inject::decide`] before as well, and as it is once the policy is in force. What the policy made of a pod must be
//! what the function made of it, status and all; whoever is left alone must be what it was; a Guaranteed pod must stay one.
//!
//! It replaces the policy of the cluster that KUBECONFIG names, makes some namespaces, and removes these.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;
use pillion_gateway::inject::{Decision, Defaults, Namespace, Patch, Reason, decide, note};
use pillion_tests::pods::{self, PROTECTED, SPACES, Space};
use serde_json::{Value, json};

const HELP: &str = "usage: pillion-golden [--seed N] [--pods N] [--policy FILE]

Compares the admission policy in FILE (deploy/yaml/50-inject.yaml) with the function, over N pods (400), on the cluster
of KUBECONFIG. The same seed makes the same pods. The namespace pillion-system must be there.";

/// A policy takes some tenths of a second to come into force, or to go.
const PATIENCE: Duration = Duration::from_secs(30);

struct Options {
    seed: u64,
    pods: usize,
    policy: String,
}

/// A pod, what the function says, and its words for it.
struct Case {
    pod: Value,
    patch: Option<Patch>,
    class: &'static str,
}

fn main() -> Result<()> {
    let Some(options) = options()? else {
        println!("{HELP}");
        return Ok(());
    };
    println!("seed {}", options.seed);
    let started = Instant::now();
    let cases = cases(&options);
    let spaces = Spaces::make()?;
    let outcome = compare(&options, &cases);
    drop(spaces);
    let mut differing = outcome?;
    let mut classes = BTreeMap::new();
    for case in &cases {
        *classes.entry(case.class).or_insert(0) += 1;
    }
    println!("{} pods in {:.1} s: {classes:?}", cases.len(), started.elapsed().as_secs_f64());
    ensure!(differing.is_empty(), "{} pods differ; the first:\n{}", differing.len(), differing.remove(0));
    println!("policy and function agree");
    Ok(())
}

fn options() -> Result<Option<Options>> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970")?;
    let mut options =
        Options { seed: u64::from(now.subsec_nanos()), pods: 400, policy: "deploy/yaml/50-inject.yaml".to_owned() };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        if name == "--help" {
            return Ok(None);
        }
        let value = args.next().with_context(|| format!("{name} needs a value\n{HELP}"))?;
        match name.as_str() {
            "--seed" => options.seed = value.parse().context("--seed: no number")?,
            "--pods" => options.pods = value.parse().context("--pods: no number")?,
            "--policy" => options.policy = value,
            _ => bail!("unknown option {name}\n{HELP}"),
        }
    }
    Ok(Some(options))
}

/// At least so many pods, and more until every outcome is among them.
fn cases(options: &Options) -> Vec<Case> {
    let mut rng = Rng::with_seed(options.seed);
    let mut missing: Vec<&str> = Reason::all().iter().map(Reason::code).collect();
    let mut cases = Vec::new();
    while cases.len() < options.pods || !missing.is_empty() {
        let (space, pod) = pods::pod(&mut rng, &format!("pod-{}", cases.len()));
        let case = case(&space, pod);
        missing.retain(|code| *code != case.class);
        cases.push(case);
    }
    cases
}

fn case(space: &Space, pod: Value) -> Case {
    let one =
        |key: &str, value: Option<&str>| value.map(|value| (key.to_owned(), value.to_owned())).into_iter().collect();
    let namespace = Namespace {
        name: space.name.to_owned(),
        labels: one("pillion.dev/inject", space.inject),
        annotations: one("sidecar.opentelemetry.io/inject", space.collector),
    };
    let (patch, class) = match decide(&pod, &namespace, &Defaults::default()) {
        Decision::Inject(patch) => (Some(patch), "injected"),
        Decision::Skip(reason) => (note(&pod, &reason), reason.code()),
    };
    Case { pod, patch, class }
}

/// Returns a description of each pod about which the two disagree.
fn compare(options: &Options, cases: &[Case]) -> Result<Vec<String>> {
    kubectl(&["delete", "--ignore-not-found", "-f", &options.policy], None)?;
    wait_for_policy(false)?;
    let raw = cases.iter().map(|case| Ok(case.pod.clone())).collect::<Result<Vec<_>>>()?;
    let before = dry_run(&raw)?;
    let patched = dry_run(&cases.iter().map(patched).collect::<Result<Vec<_>>>()?)?;
    kubectl(&["apply", "--validate=strict", "-f", &options.policy], None)?;
    wait_for_policy(true)?;
    let by_policy = dry_run(&raw)?;

    let mut differing = Vec::new();
    for case in cases {
        let name = case.pod["metadata"]["name"].as_str().unwrap_or_default();
        let [before, patched, by_policy] = [&before, &patched, &by_policy].map(|round| round.get(name));
        let (Some(before), Some(patched), Some(by_policy)) = (before, patched, by_policy) else {
            differing.push(format!("{name} was refused in a round:\n{}", case.pod));
            continue;
        };
        let wanted = if case.patch.is_some() { patched } else { before };
        if let Some(path) = difference(&settled(wanted), &settled(by_policy), "") {
            let outcome = case.class;
            differing.push(format!("{name} ({outcome} by the function): {path}\nfor\n{}", case.pod));
        }
        let class = |pod: &Value| pod["status"]["qosClass"].as_str().unwrap_or_default().to_owned();
        if class(before) != "BestEffort" && class(before) != class(by_policy) {
            differing.push(format!("{name}: {} became {} for\n{}", class(before), class(by_policy), case.pod));
        }
    }
    Ok(differing)
}

fn patched(case: &Case) -> Result<Value> {
    let mut pod = case.pod.clone();
    if let Some(patch) = &case.patch {
        json_patch::patch(&mut pod, patch).with_context(|| format!("the patch does not fit {}", case.pod))?;
    }
    Ok(pod)
}

/// All pods in one call; by name, as the API server would have stored them.
fn dry_run(pods: &[Value]) -> Result<BTreeMap<String, Value>> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string();
    let output = run(&["create", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-"], Some(&list))?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
    }
    let mut made = BTreeMap::new();
    for object in serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>() {
        let object = object.context("kubectl prints JSON")?;
        let items = object["items"].as_array().cloned().unwrap_or_else(|| vec![object]);
        made.extend(
            items.into_iter().map(|pod| (pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(), pod)),
        );
    }
    Ok(made)
}

/// Spec and metadata without what differs by chance. Volumes have no order: the API server appends one for the token before the
/// policy comes, and behind what was patched.
fn settled(pod: &Value) -> Value {
    let mut pod = json!({"metadata": pod["metadata"], "spec": pod["spec"]});
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        for chance in ["uid", "creationTimestamp", "managedFields"] {
            metadata.remove(chance);
        }
    }
    rename_tokens(&mut pod);
    if let Some(volumes) = pod["spec"]["volumes"].as_array_mut() {
        volumes.sort_by_key(|volume| volume["name"].to_string());
    }
    pod
}

fn rename_tokens(value: &mut Value) {
    match value {
        Value::String(text) if text.starts_with("kube-api-access-") => "kube-api-access".clone_into(text),
        Value::Array(list) => list.iter_mut().for_each(rename_tokens),
        Value::Object(map) => map.values_mut().for_each(rename_tokens),
        _ => {}
    }
}

/// The first path at which two values differ.
fn difference(function: &Value, policy: &Value, path: &str) -> Option<String> {
    match (function, policy) {
        (Value::Object(one), Value::Object(other)) => {
            let keys = one.keys().chain(other.keys());
            let at = |map: &serde_json::Map<String, Value>, key: &String| map.get(key).cloned().unwrap_or_default();
            keys.into_iter().find_map(|key| difference(&at(one, key), &at(other, key), &format!("{path}.{key}")))
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            let mut pairs = one.iter().zip(other).enumerate();
            pairs.find_map(|(index, (one, other))| difference(one, other, &format!("{path}[{index}]")))
        }
        _ if function == policy => None,
        _ => Some(format!("{path}: function {function}, policy {policy}")),
    }
}

/// The namespaces of the test; removed when dropped.
struct Spaces;

impl Spaces {
    fn make() -> Result<Self> {
        let present = PROTECTED.map(|space| space.name);
        kubectl(&["get", "namespace", present[0], present[1]], None)
            .context("kubectl apply -f deploy/yaml comes first")?;
        let one = |key: &str, value: Option<&str>| value.map_or_else(|| json!({}), |value| json!({key: value}));
        let namespaces = SPACES.map(|space| {
            let mut labels = one("pillion.dev/inject", space.inject);
            if space.is_restricted {
                labels["pod-security.kubernetes.io/enforce"] = "restricted".into();
            }
            let annotations = one("sidecar.opentelemetry.io/inject", space.collector);
            json!({"apiVersion": "v1", "kind": "Namespace",
                   "metadata": {"name": space.name, "labels": labels, "annotations": annotations}})
        });
        let list = json!({"apiVersion": "v1", "kind": "List", "items": namespaces}).to_string();
        // Those of a run before may still be going.
        let mut gone = vec!["delete", "namespace", "--ignore-not-found"];
        gone.extend(SPACES.map(|space| space.name));
        kubectl(&gone, None)?;
        kubectl(&["apply", "-f", "-"], Some(&list))?;
        let made = Self;
        for space in SPACES.iter().chain(&PROTECTED) {
            kubectl(&["wait", "-n", space.name, "--for=create", "serviceaccount/default", "--timeout=30s"], None)?;
        }
        Ok(made)
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        let mut args = vec!["delete", "namespace", "--wait=false", "--ignore-not-found"];
        args.extend(SPACES.map(|space| space.name));
        if let Err(error) = kubectl(&args, None) {
            eprintln!("the namespaces pillion-golden-* are left: {error:#}");
        }
    }
}

/// Asks until a pod that asks is injected, or is not any more: policies have no status that says so.
fn wait_for_policy(in_force: bool) -> Result<()> {
    let space = SPACES[1];
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": space.name},
                     "spec": {"containers": [{"name": "a", "image": "localhost/app:1"}]}});
    let deadline = Instant::now() + PATIENCE;
    loop {
        let made = dry_run(std::slice::from_ref(&pod))?;
        if made.get("probe").is_some_and(|pod| pod["spec"]["initContainers"].is_array() == in_force) {
            return Ok(());
        }
        let what = if in_force { "does not come into force" } else { "does not go" };
        ensure!(Instant::now() < deadline, "the policy {what}: is MutatingAdmissionPolicy on, and v1beta1 served?");
    }
}

fn kubectl(args: &[&str], input: Option<&str>) -> Result<()> {
    let output = run(args, input)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl {}: {}", args.join(" "), said.trim());
    Ok(())
}

fn run(args: &[&str], input: Option<&str>) -> Result<Output> {
    let mut command = Command::new("kubectl");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("kubectl does not start: is it in PATH?")?;
    let mut stdin = child.stdin.take().context("piped")?;
    // Written beside the reading: kubectl answers before it has read all.
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input.unwrap_or_default().as_bytes()));
        child.wait_with_output().context("kubectl is lost")
    })
}
