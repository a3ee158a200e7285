//! What the containers may do, and what an image without anything else can.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::identity::{arrived, never_again};
use crate::e2e::install::BACKEND_OTLP;
use crate::e2e::node::{Process, SYS_RESOURCE};
use crate::e2e::pods::{APPLICATIONS, Pod, SYSTEM, container_id, items, metadata, pods_path};
use crate::e2e::suite::Suite;

/// What makes a pod's specification one that `restricted` forbids.
type Violation = fn(&mut Value);

/// The gateway's user and group.
const GATEWAY: &str = "64317";

/// Capabilities, users and seccomp of every process; pods that ask for more.
pub(super) fn run(suite: &Suite) -> Result<()> {
    let pod = suite.cluster.start_ready(&Pod::new("modest", &["idle"]).injected())?;
    let gateway = suite.processes_of("gateway")?;
    ensure!(gateway.len() == 2, "a supervisor and a worker: {gateway:?}");
    check(&gateway, GATEWAY, 0)?;
    suite.seen("the gateway has no privilege", &describe(&gateway));
    let csi = suite.processes_of("csi")?;
    check(&csi, "0", SYS_RESOURCE)?;
    suite.seen("the driver is root with no capability but SYS_RESOURCE, where the node has it", &describe(&csi));
    let shim = suite.node()?.processes(&container_id(&pod, "pillion-shim")?)?;
    check(&shim, "65532", 0)?;
    suite.seen("the shim has no privilege", &describe(&shim));
    nothing_is_privileged(suite)?;
    violating_pods_are_refused(suite)
}

/// All processes run as this user and group, with no capability but these, and with seccomp on.
fn check(processes: &[Process], user: &str, at_most: u64) -> Result<()> {
    ensure!(!processes.is_empty(), "there is no process");
    for process in processes {
        for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"] {
            let capabilities = process.capabilities(set)?;
            ensure!(capabilities & !at_most == 0, "{set} of {} is {capabilities:x}", process.command);
        }
        for (field, right) in [("Uid", user), ("Gid", user)] {
            let seen = process.field(field);
            ensure!(seen.split_whitespace().all(|id| id == right), "{field} of {} is {seen}", process.command);
        }
        ensure!(process.field("NoNewPrivs") == "1", "{} may gain privileges", process.command);
        ensure!(process.field("Seccomp") == "2", "{} has no seccomp filter", process.command);
    }
    Ok(())
}

fn describe(processes: &[Process]) -> String {
    let first = &processes[0];
    let id = first.field("Uid").split_whitespace().next().unwrap_or_default();
    format!(
        "{} processes, uid {id}, CapEff {}, CapBnd {}, NoNewPrivs, seccomp",
        processes.len(),
        first.field("CapEff"),
        first.field("CapBnd")
    )
}

/// As the API server knows the pods of Pillion's namespace.
fn nothing_is_privileged(suite: &Suite) -> Result<()> {
    let list = suite.cluster.get(&pods_path(SYSTEM))?;
    let mut containers = 0;
    for pod in items(&list) {
        let name = metadata(pod, "name");
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            ensure!(pod["spec"][field] != true, "{name} uses {field}");
        }
        for container in
            ["initContainers", "containers"].iter().filter_map(|list| pod["spec"][*list].as_array()).flatten()
        {
            let context = &container["securityContext"];
            containers += 1;
            ensure!(context["privileged"] != true, "{name} is privileged");
            ensure!(context["allowPrivilegeEscalation"] == false, "{name} may gain privileges");
            ensure!(context["readOnlyRootFilesystem"] == true, "{name} may write to its image");
        }
    }
    suite.seen("nothing is privileged", &format!("{containers} containers of {SYSTEM}"));
    Ok(())
}

fn violating_pods_are_refused(suite: &Suite) -> Result<()> {
    let path = pods_path(APPLICATIONS);
    let violations: [(&str, Violation); 2] = [
        ("privileged", |spec| {
            let context = &mut spec["containers"][0]["securityContext"];
            context["privileged"] = json!(true);
            context["allowPrivilegeEscalation"] = json!(true);
        }),
        ("hostPath", |spec| {
            spec["volumes"]
                .as_array_mut()
                .expect("made with it")
                .push(json!({"name": "run", "hostPath": {"path": "/run"}}));
        }),
    ];
    for (name, violation) in violations {
        let pod = Pod::new(&format!("greedy-{}", name.to_lowercase()), &["idle"]).injected().change(violation);
        let refusal =
            suite.cluster.create(&path, pod.object()).err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(refusal.contains("violates PodSecurity \"restricted"), "a pod with {name} is not refused: {refusal:?}");
        ensure!(refusal.contains(name), "it is refused for something else than {name}: {refusal}");
    }
    suite.seen(
        "the applications' namespace enforces restricted",
        "with the shim admitted; privileged and hostPath refused",
    );
    Ok(())
}

/// `pillion send` in the gateway's image, to a name that only DNS knows, and to one that only the pod's hosts file knows.
pub(super) fn names(suite: &Suite) -> Result<()> {
    let low_ports = |spec: &mut Value| {
        spec["securityContext"]["sysctls"] = json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]);
    };
    let server = suite.cluster.start_ready(&Pod::new("dns", &["dns", "--answer", &suite.backend]).change(low_ports))?;
    let server = server["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    let by_dns = json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": [server]}});
    let by_file = json!({
        "dnsPolicy": "None", "dnsConfig": {"nameservers": ["127.0.0.1"]},
        "hostAliases": [{"ip": suite.backend, "hostnames": ["backend.e2e.example"]}],
    });
    let before = suite.service("pillion-send")?.items;
    for (number, (how, settings)) in (1..).zip([("dns", by_dns), ("hosts-file", by_file)]) {
        let endpoint = format!("http://backend.e2e.example:{BACKEND_OTLP}");
        let name = format!("by-{how}");
        let pod = Pod::new(&name, &["send", "--endpoint", &endpoint]).change(|spec| {
            spec["containers"][0]["image"] = json!("pillion.dev/gateway:0.1.0");
            for (key, value) in settings.as_object().expect("an object above") {
                spec[key] = value.clone();
            }
            never_again(spec);
        });
        suite.cluster.start(&pod)?;
        suite.cluster.phase(&name, "Succeeded")?;
        arrived(suite, "pillion-send", before.map(|items| items + number))?;
    }
    suite.seen("a static program FROM scratch resolves names", "one by DNS, one by the pod's hosts file");
    Ok(())
}
