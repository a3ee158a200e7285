use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::share::{Pod as Application, run as run_pod};
use super::*;
use crate::compare::About;

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn scenario(pods: usize) -> Scenario {
    Scenario::parse(&format!(
        "about = \"x\"\npods = {pods}\nseconds = 0.4\nwarmup = 0.2\nrequests_per_second = 100.0\nitems = {{traces = 3, logs = 2}}"
    ))
    .unwrap()
}

fn site(kubectl: &str) -> Site {
    Site {
        kubectl: Kubectl::new(kubectl).unwrap(),
        sink: "192.0.2.7:24317".parse().unwrap(),
        conductor: "192.0.2.7:24318".parse().unwrap(),
        application_image: "app:1".to_owned(),
        otelcol_image: "otelcol:1".to_owned(),
        pillion_namespace: "pillion-system".to_owned(),
        run: 7,
    }
}

/// A kubectl that is a shell script; `$DIR` in it is its directory.
fn kubectl(dir: &Path, script: &str) -> Kubectl {
    let path = dir.join("kubectl");
    std::fs::write(&path, format!("#!/bin/sh\nDIR={}\n{script}\n", dir.display())).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    // Through a shell: what was just written cannot be executed while another test's child still has it open.
    Kubectl::new(&format!("sh {}", path.display())).unwrap()
}

/// Scenario: three pods, one of them called before by somebody who is none and by a pod of another run, send warm-up and load to a
/// sink; the ledger here is made of what they tell.
/// Guarantees: every item that a pod saw acknowledged is in the account, of the warm-up too, and none of it is lost, repeated or
/// another pod's; pods do not march in step.
#[test]
fn pods_tell_all_that_they_saw_acknowledged() {
    let scenario = scenario(3);
    let profile = Profile::parse(scenario.profile.text()).unwrap();
    let plan = cell::plan(&profile, &scenario, 5, 6).unwrap();
    let (judge, desk, taker) = cell::judge(&profile, Arc::new(plan), None).unwrap();
    let sink = Sink::start(loopback(0), Keep::Hand(taker)).unwrap();
    let conductor = Conductor::bind(loopback(0)).unwrap();
    let (address, ledger) = (conductor.address().unwrap(), Ledger::new(3));
    std::thread::scope(|scope| {
        let pod = |number, run| Application { number, run, conductor: address, target: sink.address() };
        let strangers = [pod(0, 6), pod(9, 7)].map(|stranger| scope.spawn(move || run_pod(stranger)));
        drop(std::net::TcpStream::connect(address).unwrap());
        let own: Vec<_> = (0..3).map(|number| scope.spawn(move || run_pod(pod(number, 7)))).collect();
        let mut pods = conductor.gather(7, &scenario, Duration::from_secs(60)).unwrap();
        pods.prepare(5, 6).unwrap();
        let warmed = pods.send(Part::WarmUp, &ledger).unwrap();
        cell::drain(&judge, &ledger, Duration::from_secs(60)).unwrap();
        desk.settle();
        let sent = judge.account(&ledger).sent;
        let outcome = pods.send(Part::Measured, &ledger).unwrap();
        cell::drain(&judge, &ledger, Duration::from_secs(60)).unwrap();
        desk.settle();
        let account = judge.account(&ledger);

        assert!(warmed.due > 10 && outcome.due > 40, "{warmed:?} {outcome:?}");
        assert_eq!((outcome.due, outcome.all_latencies().count()), (outcome.acknowledged, outcome.due), "{outcome:?}");
        assert_eq!(outcome.connections, 3, "one a pod, for each part: {outcome:?}");
        assert!(sent > 0 && account.sent > sent, "{account:?}");
        assert_eq!((account.sent, account.acknowledged), (account.acknowledged, account.delivered), "{account:?}");
        assert_eq!(account.mistakes(), Vec::<String>::new());
        let shares: BTreeSet<u64> = (0..3).map(|pod| ledger.share(pod).iter().map(|lane| lane.sent).sum()).collect();
        assert!(shares.len() > 1, "independent pods do not all send as much: {shares:?}");
        drop(pods);
        // Nobody has looked at who called late.
        drop(conductor);
        own.into_iter().for_each(|pod| pod.join().unwrap().unwrap());
        strangers.into_iter().for_each(|stranger| drop(stranger.join().unwrap()));
    });
}

/// Scenario: no pod calls but those that an earlier run left; then one is told to send what it has not prepared.
/// Guarantees: who is missing is named when patience ends, whoever else called; the second says why it cannot, under its name.
#[test]
fn a_pod_that_cannot_is_named() {
    let (scenario, conductor) = (scenario(2), Conductor::bind(loopback(0)).unwrap());
    let (address, target) = (conductor.address().unwrap(), std::net::TcpListener::bind(loopback(0)).unwrap());
    let target = (target.local_addr().unwrap(), target);
    std::thread::scope(|scope| {
        let pod = |number, run| {
            scope.spawn(move || run_pod(Application { number, run, conductor: address, target: target.0 }))
        };
        let earlier = [pod(0, 6), pod(1, 6)];
        let error = conductor.gather(7, &scenario, Duration::from_secs(1)).unwrap_err();
        assert!(format!("{error:#}").contains("cart-0000 did not call"), "{error:#}");
        let own = [pod(0, 7), pod(1, 7)];
        let mut pods = conductor.gather(7, &scenario, Duration::from_secs(60)).unwrap();
        let error = pods.send(Part::Measured, &Ledger::new(2)).unwrap_err();
        assert!(format!("{error:#}").contains("cart-0000: nothing is prepared"), "{error:#}");
        drop(pods);
        drop(conductor);
        earlier.into_iter().chain(own).for_each(|pod| drop(pod.join().unwrap()));
    });
}

/// A summary of one pod with two containers; the number is when the kubelet looked, and what it saw grows with it.
const SUMMARY: &str = r#"
summary() { cat <<END
{"node": {"cpu": {"usageCoreNanoSeconds": 9000000000}}, "pods": [
 {"podRef": {"namespace": "other", "name": "cart-0000"}, "containers": [{"name": "old", "cpu": {"time": "1", "usageCoreNanoSeconds": 1},
   "memory": {"time": "1", "workingSetBytes": 1024}}]},
 {"podRef": {"namespace": "n", "name": "cart-0000"}, "cpu": {"time": "$1", "usageCoreNanoSeconds": $(($1 * 3000000000))},
   "memory": {"time": "$1", "workingSetBytes": $(($1 * 9216))}, "containers": [
   {"name": "app", "cpu": {"time": "$1", "usageCoreNanoSeconds": $(($1 * 1000000000))},
    "memory": {"time": "$1", "workingSetBytes": 2048}},
   {"name": "otelcol", "cpu": {"time": "$2", "usageCoreNanoSeconds": $(($2 * 2000000000))},
    "memory": {"time": "$2", "workingSetBytes": $(($2 * 4096))}}]}]}
END
}
"#;

/// Scenario: a kubelet that looks at one container sooner than at the other, and knows pods that nobody asks for; it is read twice,
/// then the second container starts again.
/// Guarantees: a reading has nothing that was seen before it began; sums are of the pods asked for; a counter that fell is an error, not
/// a bill of nothing.
#[test]
fn a_reading_is_never_older_than_its_question() {
    let dir = tempfile::tempdir().unwrap();
    let count = "n=$(cat $DIR/n 2>/dev/null || echo 0); n=$((n + 1)); echo $n >$DIR/n\n";
    let turns = "case $n in 1) summary 1 1 ;; 2) summary 2 1 ;; 3) summary 2 2 ;; 4) summary 3 3 ;; 5) summary 5 5 ;; \
                 6) summary 6 6 ;; *) summary 7 1 ;; esac";
    let kubectl = kubectl(dir.path(), &format!("{SUMMARY}{count}{turns}"));
    let (nodes, pods) = (["node".to_owned()], [("n".to_owned(), "cart-0000".to_owned())]);
    let take = || Reading::take(&kubectl, &nodes, &pods, Duration::from_millis(1)).unwrap();
    let (first, second) = (take(), take());
    let read = |reading: &Reading| reading.used.values().map(|usage| usage.cpu.as_secs()).collect::<Vec<_>>();
    assert_eq!(read(&first), [6, 2, 4], "not the first two answers, of which one is old");
    assert_eq!(read(&second), [15, 5, 10]);
    let costs = costs("n", [&first, &first, &second]).unwrap();
    assert_eq!(costs.agents(|used| used.idle_kib), 8);
    assert_eq!(costs.agents(|used| used.after_kib), 20, "the application is no agent");
    let cpu = costs.cpu();
    assert!((cpu.arm - 6.0).abs() < 1e-9 && (cpu.generator - 3.0).abs() < 1e-9, "{cpu:?}");
    assert!((costs.whole.cpu - 9.0).abs() < 1e-9 && costs.whole.count == 1, "{costs:?}");
    let error = format!("{:#}", take().since(&second).unwrap_err());
    assert!(error.contains("started again") && error.contains("otelcol"), "{error}");
}

/// Scenario: the pods of each arm; one that asked for Pillion and was skipped by admission.
/// Guarantees: the application sends to the sink, or to its own loopback; the Collector has its limits, its configuration and its pod's
/// identity; a pod without a shim is no pod of Pillion's arm, and the reason is told.
#[test]
fn each_arm_has_its_own_pods() {
    let site = site("kubectl");
    let pod = |way: Way, protocol| way.pod(&site, protocol, "n", 3);
    let target = |pod: &Value| {
        let args = pod["spec"]["containers"][0]["args"].as_array().unwrap().clone();
        args.last().unwrap().as_str().unwrap().to_owned()
    };
    let grpc = crate::generator::Protocol::Grpc;
    assert_eq!(target(&pod(Way::Direct, grpc)), "192.0.2.7:24317");
    assert_eq!(target(&pod(Way::Pillion, crate::generator::Protocol::Http)), "127.0.0.1:4318");
    let collector = pod(Way::Otelcol, grpc);
    assert_eq!(
        (target(&collector), &collector["metadata"]["name"]),
        ("127.0.0.1:4317".to_owned(), &json!("cart-0003"))
    );
    let sidecar = &collector["spec"]["initContainers"][0];
    assert_eq!(
        (&sidecar["restartPolicy"], &sidecar["resources"]["limits"]["memory"]),
        (&json!("Always"), &json!("512Mi"))
    );
    let env = serde_json::to_string(&sidecar["env"]).unwrap();
    for words in ["memory_limiter, resource, batch", "192.0.2.7:24317", "${env:K8S_POD_NAME}", "metadata.uid", "409MiB"]
    {
        assert!(env.contains(words), "{words}: {env}");
    }
    let mut injected = pod(Way::Pillion, grpc);
    assert_eq!(injected["metadata"]["annotations"]["pillion.dev/inject"], "enabled");
    injected["metadata"]["annotations"]["pillion.dev/status"] = json!("skipped: port-taken");
    let error = Way::Pillion.check(&injected).unwrap_err().to_string();
    assert!(error.contains("skipped: port-taken"), "{error}");
    injected["spec"]["initContainers"] = json!([{"name": "pillion-shim"}]);
    Way::Pillion.check(&injected).unwrap();
}

/// Scenario: a Pillion that sends elsewhere, one that acknowledges from memory, and one after the disk.
/// Guarantees: the first is not compared, and what to do is told; the others are arms, of their own promise.
#[test]
fn the_installed_gateway_must_send_to_the_sink() {
    let dir = tempfile::tempdir().unwrap();
    let find = |text: &str| {
        let map = json!({"data": {"pillion.yaml": text}}).to_string();
        std::fs::write(dir.path().join("map"), map).unwrap();
        Way::Pillion.find(&Site { kubectl: kubectl(dir.path(), "cat $DIR/map"), ..site("kubectl") })
    };
    let elsewhere = format!("{:#}", find("ack: memory\nendpoint: \"http://192.0.2.8:24317\"").unwrap_err());
    assert!(elsewhere.contains("sends elsewhere: write http://192.0.2.7:24317"), "{elsewhere}");
    for (ack, is_durable) in [("memory", false), ("durable", true)] {
        let text =
            format!("defaults:\n  ack: {ack}   # word\ndestinations: {{b: {{\nendpoint: \"http://192.0.2.7:24317\"\n");
        let About { about, is_durable: told, .. } = find(&text).unwrap().about;
        assert!(told == is_durable && about.contains(&format!("ack {ack}")), "{about}");
    }
}

/// Scenario: scenarios that make a backend slow, and that kill an agent.
/// Guarantees: the first can be run on a cluster; the second is refused by the event's name before anything is made.
#[test]
fn agents_of_a_cluster_are_left_alone() {
    check(&Scenario::load("backend-down").unwrap()).unwrap();
    let error = check(&Scenario::load("agent-killed").unwrap()).unwrap_err().to_string();
    assert!(error.contains("AgentKilled"), "{error}");
}
