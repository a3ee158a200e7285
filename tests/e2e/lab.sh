# The one-node Kubernetes of the tests, for the scripts beside this file: sourced, not run.
#
# K8S_LAB is its program (../shared/k8s-lab/lab beside the repository if not set).
K8S_LAB=$(realpath -m -- "${K8S_LAB:-../shared/k8s-lab/lab}")
export K8S_LAB

need_lab() { [ -x "$K8S_LAB" ] || { echo "$0: no Kubernetes lab at $K8S_LAB: set K8S_LAB to its program" >&2; exit 1; }; }

# Starts it unless it is up.
lab_up() {
    local status=0
    "$K8S_LAB" status >/dev/null 2>&1 || status=$?
    [ $status = 3 ] || return 0
    "$K8S_LAB" deps --install
    "$K8S_LAB" build
    mkdir -p /var/lib/pillion
    "$K8S_LAB" up
    # The gateway's data is on the node's disk. Two labs, or a lab and this machine, must not share it.
    "$K8S_LAB" exec sh -ec 'mkdir -p /run/lab/fs/pillion && mount --bind /run/lab/fs/pillion /var/lib/pillion'
}

lab_down() {
    "$K8S_LAB" down
    # The lab's own was mounted over it, so what is in there is somebody else's.
    rmdir --ignore-fail-on-non-empty /var/lib/pillion
}
