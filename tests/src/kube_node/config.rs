//! What containerd, CNI's plugins, kubelet and kube-proxy of a test node are told.

use std::path::Path;

use serde_json::{Value, json};

use crate::Node;

/// The image that keeps a pod's sandbox.
pub(super) const PAUSE: &str = "orlop.test/pause:1";
/// Where containerd listens, inside the machine.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";

pub(super) fn containerd(runc: &Path) -> String {
    let unused =
        ["snapshotter.v1.btrfs", "snapshotter.v1.zfs", "snapshotter.v1.devmapper", "snapshotter.v1.aufs"];
    let unused: Vec<_> = unused.iter().map(|name| format!("\"io.containerd.{name}\"")).collect();
    format!(
        r#"version = 2
disabled_plugins = [{}]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
BinaryName = "{}"
"#,
        unused.join(", "),
        runc.display()
    )
}

/// Pods get addresses of the upper halves of the node's ranges: the testbed gives those of the lower ones.
pub(super) fn cni(node: &Node) -> Value {
    let [gateway4, gateway6] = node.gateways();
    let (net4, net6) = (gateway4.to_string().replace(".0.1", ""), gateway6.to_string().replace("::1", ""));
    json!({
        "cniVersion": "0.4.0", "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": "br0", "isDefaultGateway": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "ranges": [
                [{"subnet": format!("{net4}.0.0/16"), "rangeStart": format!("{net4}.128.0"), "gateway": gateway4}],
                [{"subnet": format!("{net6}::/64"), "rangeStart": format!("{net6}::8000"), "gateway": gateway6}],
            ]},
        }],
    })
}

/// Nothing is evicted, however full the machine's disk is.
pub(super) fn kubelet(authority: &Path, dns: &str) -> Value {
    let never = ["memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available"];
    let never: serde_json::Map<_, _> = never.into_iter().map(|key| (key.to_owned(), json!("0%"))).collect();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": false}, "x509": {"clientCAFile": authority}},
        "cgroupDriver": "cgroupfs",
        "clusterDNS": [dns],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "enforceNodeAllocatable": [],
        "evictionHard": never,
        // A machine may have both versions, and its controllers with the first.
        "failCgroupV1": false,
        "failSwapOn": false,
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": false,
        "makeIPTablesUtilChains": false,
        "maxOpenFiles": 20000,
        "oomScoreAdj": 0,
        "resolvConf": "",
        "staticPodPath": "/etc/kubernetes/manifests",
        "fileCheckFrequency": "1s",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
    })
}

pub(super) fn proxy(kubeconfig: &Path, node: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": kubeconfig},
        "clusterCIDR": "10.0.0.0/8",
        "hostnameOverride": node,
        "nodePortAddresses": ["127.0.0.0/8"],
        // The machine's are not ours to change.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}
