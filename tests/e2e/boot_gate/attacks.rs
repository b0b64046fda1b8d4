//! Requests that kubelet would not make, from who has its place or from a pod's author.

use std::fs;
use std::os::unix::fs::symlink;

use orlop_tests::protobuf::field;

use super::kubelet::{
    INVALID_ARGUMENT, OUT_OF_RANGE, RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED, publish_request,
};
use super::{Gated, UID};

const PUBLISH: &str = "Node/NodePublishVolume";

fn refuses(gated: &Gated, target: &str, uid: &str) -> (u32, String) {
    gated.kubelet.csi(PUBLISH, &publish_request(target, uid)).expect_err("was taken")
}

#[test]
fn nothing_is_made_but_where_kubelet_has_volumes() {
    let gated = Gated::new();
    gated.kubelet.cgroup(UID);
    let directory = gated.testbed.dir().join("elsewhere");
    let target = gated.kubelet.target(UID);
    let target = target.to_str().unwrap();
    for wrong in [
        directory.to_str().unwrap().to_owned(),
        target.replace(UID, ".."),
        target.replace("orlop-gate", ".."),
        target.replace("/mount", "/../../../../../../elsewhere"),
        target.replace("/mount", ""),
        format!("{target}/"),
        String::new(),
        "x".repeat(60_000),
    ] {
        let (status, message) = refuses(&gated, &wrong, UID);
        assert_eq!(status, INVALID_ARGUMENT, "{message}");
        assert!(message.contains("kubelet-dir") && message.len() < 1000, "{message}");
    }
    assert!(!directory.exists());
    let (status, message) = refuses(&gated, target, "another");
    assert_eq!(status, INVALID_ARGUMENT, "{message}");
    assert_eq!(gated.behind(), 0.0);

    // Somebody was there before.
    fs::create_dir_all(gated.kubelet.target(UID).parent().unwrap()).unwrap();
    fs::create_dir(&directory).unwrap();
    symlink(&directory, target).unwrap();
    gated.kubelet.publish(UID).expect_err("followed a link");
    gated.kubelet.unpublish(UID).expect_err("removed what it has not made");
    assert!(directory.is_dir());
}

#[test]
fn a_pod_without_a_cgroup_is_not_let_start() {
    let gated = Gated::new();
    let (status, message) = gated.kubelet.publish(UID).unwrap_err();
    assert_eq!(status, UNAVAILABLE);
    assert!(message.contains("no cgroup"), "{message}");
    assert!(!gated.kubelet.target(UID).exists());
    gated.kubelet.cgroup(UID);
    gated.kubelet.publish(UID).unwrap();
    assert!(gated.kubelet.target(UID).exists());
}

#[test]
fn garbage_is_refused_and_the_next_call_is_served() {
    let gated = Gated::new();
    gated.kubelet.cgroup(UID);
    let target = gated.kubelet.target(UID);
    let mut writable = publish_request(target.to_str().unwrap(), UID);
    let read_only = writable.windows(2).position(|pair| pair == [0x30, 1]).unwrap();
    writable[read_only + 1] = 0;
    let huge = field(4, &vec![b'x'; 1 << 20]);
    let endless = [0x22, 0xff, 0xff, 0xff, 0xff, 0x7f];
    for (what, message, wanted) in [
        ("nothing", &[][..], &[INVALID_ARGUMENT][..]),
        ("writable", &writable, &[INVALID_ARGUMENT]),
        ("huge", &huge, &[OUT_OF_RANGE, RESOURCE_EXHAUSTED]),
        // What tonic says of a message that can't be read is "internal".
        ("endless", &endless, &[INVALID_ARGUMENT, 13]),
        ("not UTF-8", &field(4, &[0xff; 9]), &[INVALID_ARGUMENT, 13]),
    ] {
        let (status, message) = gated.kubelet.csi(PUBLISH, message).expect_err(what);
        assert!(wanted.contains(&status), "{what}: {status} {message}");
    }
    for unknown in ["Node/NodeStageVolume", "Controller/CreateVolume", "Node/", ""] {
        let (status, _) = gated.kubelet.csi(unknown, &[]).unwrap_err();
        assert_eq!(status, UNIMPLEMENTED, "{unknown}");
    }
    let info = gated.kubelet.csi("Identity/GetPluginInfo", &[]).unwrap();
    assert!(info.starts_with(&field(1, b"gate.orlop.dev")));
    for call in ["Identity/GetPluginCapabilities", "Identity/Probe", "Node/NodeGetCapabilities"] {
        assert!(gated.kubelet.csi(call, &[]).unwrap().is_empty(), "{call}");
    }
    assert_eq!(gated.kubelet.csi("Node/NodeGetInfo", &[]).unwrap(), field(1, b"n1"));
    gated.kubelet.publish(UID).unwrap();
    gated.kubelet.publish(UID).unwrap();
    assert_eq!(gated.behind(), 1.0);
}
