//! Every reason for a refusal, and what a pod cannot claim.

use super::*;

const TARGET: &str = "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/pillion/mount";

fn request() -> NodePublishVolumeRequest {
    let context = [
        ("csi.storage.k8s.io/pod.uid", "u-1"),
        ("csi.storage.k8s.io/pod.namespace", "shop"),
        ("csi.storage.k8s.io/pod.name", "cart"),
        ("csi.storage.k8s.io/serviceAccount.name", "till"),
        ("csi.storage.k8s.io/ephemeral", "true"),
    ];
    NodePublishVolumeRequest {
        volume_id: "csi-1".to_owned(),
        target_path: TARGET.to_owned(),
        readonly: true,
        volume_context: context.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    }
}

fn outcome(request: &NodePublishVolumeRequest) -> Result<Record, Refusal> {
    let target = target(Path::new("/var/lib/kubelet"), &request.target_path)?;
    check(&target, request)
}

fn set(request: &mut NodePublishVolumeRequest, key: &str, value: &str) {
    request.volume_context.insert(key.to_owned(), value.to_owned());
}

/// Scenario: a request as the kubelet sends it; the pod adds attributes that look like its identity.
/// Guarantees: identity is the kubelet's, ports are the pod's or the defaults.
#[test]
fn identity_is_what_the_kubelet_says() {
    let mut request = request();
    for key in ["pod.name", "pod.namespace", "pod.uid", "uid", "namespace", "serviceAccount.name"] {
        set(&mut request, key, "forged");
    }
    let record = outcome(&request).expect("accepted");
    assert_eq!(
        (record.uid.as_str(), record.namespace.as_str(), record.pod.as_str(), record.service_account.as_str()),
        ("u-1", "shop", "cart", "till")
    );
    assert_eq!(record.ports, [4317, 4318]);

    set(&mut request, "grpcPort", "14317");
    assert_eq!(outcome(&request).expect("accepted").ports, [14317, 4318]);
}

/// Scenario: each thing that may be wrong with a request.
/// Guarantees: it is refused with words that name the thing and say what to set.
#[test]
fn every_refusal_says_what_to_do() {
    type Change = fn(&mut NodePublishVolumeRequest);
    let cases: &[(Change, &str)] = &[
        (|request| request.readonly = false, "set readOnly: true"),
        (|request| set(request, "csi.storage.k8s.io/ephemeral", "false"), "volumeLifecycleModes: [Ephemeral]"),
        (|request| drop(request.volume_context.remove("csi.storage.k8s.io/ephemeral")), "inline volume"),
        (|request| drop(request.volume_context.remove("csi.storage.k8s.io/pod.uid")), "podInfoOnMount: true"),
        (|request| drop(request.volume_context.remove("csi.storage.k8s.io/pod.name")), "podInfoOnMount: true"),
        (|request| set(request, "csi.storage.k8s.io/pod.namespace", ""), "podInfoOnMount: true"),
        (|request| set(request, "csi.storage.k8s.io/pod.name", &"x".repeat(254)), "longer than 253"),
        (|request| set(request, "csi.storage.k8s.io/pod.uid", "u-2"), "target_path is of pod u-1"),
        (|request| set(request, "grpcPort", "0"), "grpcPort is \"0\""),
        (|request| set(request, "httpPort", "65536"), "httpPort is \"65536\""),
        (|request| set(request, "httpPort", ""), "a port from 1 to 65535"),
        (|request| set(request, "grpcPort", &"9".repeat(1 << 16)), "a port from 1 to 65535"),
        (|request| set(request, "grpcPort", "4318"), "are the same"),
        (|request| request.target_path = "/etc".to_owned(), "--kubelet-dir"),
    ];
    for (change, words) in cases {
        let mut request = request();
        change(&mut request);
        let refusal = outcome(&request).expect_err(words);
        assert!(refusal.reason.contains(words) && refusal.reason.len() < 500, "{words}: {refusal}");
        assert_eq!(refusal.code, Code::InvalidArgument, "{words}: the kubelet need not wonder what came of it");
    }
}
