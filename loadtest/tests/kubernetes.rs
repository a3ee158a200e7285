//! The comparison on a cluster that is a shell script: kubectl's words, with the application's own program as pods.
//!
//! In a network of its own, since pods never call a loopback address: needs user namespaces, `unshare` and `ip`.

use std::process::Command;

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pillion-loadtest");

/// Creates pods by starting them, says that they are Ready, counts a second of CPU for each look at them, and ends them.
const KUBECTL: &str = r#"
echo "$*" >>$DIR/asked
case "$*" in
*"/api/v1/nodes") echo '{"items": [{"status": {"nodeInfo": {}, "capacity": {"cpu": "3"}}}]}' ;;
*/serviceaccounts/default) echo '{}' ;;
"create -f -")
    cat >$DIR/objects
    grep -q '"kind":"Pod"' $DIR/objects || { : >$DIR/events; exit 0; }
    grep -o '"namespace":"[^"]*"' $DIR/objects | head -n 1 | cut -d'"' -f4 >$DIR/namespace
    grep -o '"name":"cart-[0-9]*"' $DIR/objects | cut -d'"' -f4 >$DIR/pods
    for name in $(cat $DIR/pods); do
        echo "{\"object\": {\"metadata\": {\"name\": \"$name\"}, \"spec\": {}}}"
        echo "{\"object\": {\"metadata\": {\"name\": \"$name\"}, \"spec\": {\"nodeName\": \"one\"},
            \"status\": {\"conditions\": [{\"type\": \"Ready\", \"status\": \"True\"}]}}}"
    done >>$DIR/events
    grep -o '"args":\["pod"[^]]*' $DIR/objects | sed 's/"args":\[//; s/"//g; s/,/ /g' >$DIR/arguments
    while read -r arguments; do $PROGRAM $arguments >/dev/null 2>&1 & done <$DIR/arguments ;;
*"pods?watch=1") exec tail -n +1 -f $DIR/events ;;
*/nodes/one/proxy/stats/summary)
    n=$(($(cat $DIR/n 2>/dev/null || echo 0) + 1)); echo $n >$DIR/n
    figures="\"cpu\": {\"time\": \"$n\", \"usageCoreNanoSeconds\": ${n}000000000}, \"memory\": {\"time\": \"$n\", \"workingSetBytes\": 4096}"
    printf '{"node": {}, "pods": [{}'
    for name in $(cat $DIR/pods); do
        printf ', {"podRef": {"namespace": "%s", "name": "%s"}, %s, "containers": [{"name": "app", %s}]}' \
            "$(cat $DIR/namespace)" "$name" "$figures" "$figures"
    done
    echo ']}' ;;
"delete "*) ;;
*) echo "not there: $*" >&2; exit 1 ;;
esac
"#;

/// Scenario: two rounds without an agent, two pods; Pillion is asked for and not installed.
/// Guarantees: pods are told to send, every item is accounted for, the kubelet's figures and the times until Ready are in the files, what
/// is not there is named, and no namespace is left.
#[test]
fn a_cluster_is_compared_through_kubectl_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let script = format!("DIR={}\nPROGRAM={PROGRAM}\n{KUBECTL}", dir.path().display());
    std::fs::write(dir.path().join("kubectl"), script).unwrap();
    let run = Command::new("unshare")
        .args(["--map-root-user", "--net", "sh", "-c"])
        .args(["ip link set lo up && ip address add 192.0.2.7/32 dev lo && exec \"$@\"", "sh", PROGRAM])
        .args(["compare", "quick", "--kubernetes", "--sink", "192.0.2.7:24317", "--arms", "direct,pillion"])
        .args(["--rounds", "2", "--pods", "2", "--seconds", "0.5", "--seed", "5", "--out"])
        .arg(&out)
        .env("KUBECTL", format!("sh {}", dir.path().join("kubectl").display()))
        .output()
        .unwrap();

    let told = format!("{}\n{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap();
    assert!(run.status.success(), "{told}\n{asked}");
    assert!(told.contains("direct: all") && told.contains("arrived once, unchanged, under their pod's name"), "{told}");
    assert!(told.contains("MISSING pillion: Pillion is not installed"), "{told}");
    assert!(told.contains("1 nodes of 3 processors") && told.contains("2 in pods"), "{told}");
    let json: Value = serde_json::from_slice(&std::fs::read(out.join("comparison.json")).unwrap()).unwrap();
    let cells = json["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2, "{json:#}");
    for cell in cells {
        assert!(cell["requests"]["due"].as_u64().unwrap() > 20, "{cell:#}");
        assert_eq!(cell["requests"]["due"], cell["requests"]["acknowledged"], "{cell:#}");
        assert_eq!(cell["account"]["sent"], cell["account"]["delivered"], "{cell:#}");
        let cluster = &cell["on_cluster"];
        assert!(cluster["ready_ms"][1].as_f64().unwrap() > 0.0, "{cell:#}");
        assert_eq!((&cluster["nodes"], &cluster["containers"]["app"]["after_kib"]), (&1.into(), &8.into()), "{cell:#}");
        assert!(cell["cpu"]["generator"].as_f64().unwrap() >= 2.0, "{cell:#}");
    }
    let of = |what: &str| asked.lines().filter(|line| line.starts_with(what)).count();
    assert_eq!((of("create"), of("delete namespace") >= 2), (4, true), "{asked}");
}
