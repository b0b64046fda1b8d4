//! The boot gate: a pod that asks for it reaches nobody, and nobody it, from its start until it is enrolled.

mod attacks;
mod cold;
pub mod inside;
pub mod kubelet;

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use nix::libc::{EAFNOSUPPORT, ENOPROTOOPT, EPROTONOSUPPORT};
use orlop_tests::traffic::EchoServer;
use orlop_tests::{Agent, Pod, PodSpec, Testbed, wait_for};

use crate::mesh::{TIMEOUT, await_value};
use crate::pair::{dial, ping, program, record};
use inside::{HELD, Inside, Said};
use kubelet::{Kubelet, UNAVAILABLE};

const UID: &str = "5e1f3a1c-7c0e-4a59-9d2c-3f0a6b1e2d4c";
const PORT: u16 = 8080;
const UDP_PORT: u16 = 5000;
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// Nobody answers within this, who would at once.
const SILENCE: Duration = Duration::from_millis(300);

/// A node whose kubelet asks an agent, and another without, where a pod that is not in the mesh serves.
struct Gated {
    agent: Agent,
    outside: Pod,
    echo: EchoServer,
    kubelet: Kubelet,
    testbed: Testbed,
}

impl Gated {
    fn new() -> Self {
        let testbed = Testbed::new().unwrap();
        testbed.world().enrolled_namespace("shop").unwrap();
        let [node, other] = ["n1", "n2"].map(|name| testbed.node(name).unwrap());
        let outside = other.pod("street", "outside", PodSpec::new()).unwrap();
        let echo = outside.serve_echo(80).unwrap();
        let kubelet = Kubelet::new(&testbed, &node);
        let agent = node.agent(kubelet.options()).unwrap();
        kubelet.endpoint();
        Self { agent, outside, echo, kubelet, testbed }
    }

    /// A pod of the mesh that the world does not know yet.
    fn pod(&self) -> (Pod, Inside) {
        let pod = self.kubelet.run("shop", "web", UID);
        let inside = Inside::of(&pod);
        (pod, inside)
    }

    /// Tells the world of the pod, and waits until it is enrolled.
    fn enrol(&self, pod: &Pod) {
        pod.set_ready(true).unwrap();
        self.agent.wait_enrolled([pod]).unwrap();
    }

    fn echoes(&self) -> [SocketAddr; 2] {
        [self.echo.addr(), self.echo.addr6()]
    }

    #[track_caller]
    fn assert_held(&self, inside: &mut Inside) {
        for to in self.echoes() {
            assert_eq!(inside.dial(to), HELD, "{to}");
        }
    }

    #[track_caller]
    fn assert_served(&self, inside: &mut Inside) {
        for to in self.echoes() {
            assert_eq!(inside.dial(to), Said::Ok, "{to}");
        }
    }

    fn refused(&self) -> f64 {
        self.agent.metric("orlop_kernel_refused_total", &["reason=\"gated\""]).unwrap()
    }

    fn behind(&self) -> f64 {
        self.agent.metric("orlop_boot_gate_pods", &[]).unwrap()
    }
}

#[test]
fn a_pod_reaches_itself_alone_until_it_is_enrolled() {
    let gated = Gated::new();
    let (pod, mut inside) = gated.pod();
    assert_eq!(inside.tell(&format!("listen {PORT}")), Said::Ok);
    assert_eq!(inside.tell(&format!("bind {UDP_PORT}")), Said::Ok);
    gated.assert_held(&mut inside);
    for to in gated.echoes() {
        for command in ["associate", "send"] {
            assert_eq!(inside.to(command, to), HELD, "{command} {to}");
        }
        assert_eq!(inside.raw(to.ip()), HELD, "{to}");
    }
    let mptcp = inside.tell("mptcp");
    let unknown = [EPROTONOSUPPORT, ENOPROTOOPT].map(Said::Error);
    assert!(mptcp == HELD || unknown.contains(&mptcp), "{mptcp:?}");
    for own in LOOPBACK {
        assert_eq!(inside.dial((own, PORT).into()), Said::Ok, "{own}");
        assert_eq!(inside.to("send", (own, UDP_PORT).into()), Said::Ok, "{own}");
    }
    assert!(wait_for(TIMEOUT, || inside.heard(UDP_PORT) > 0), "not even from itself");

    gated.enrol(&pod);
    gated.assert_served(&mut inside);
    for to in gated.echoes() {
        assert_eq!(inside.to("send", to), Said::Ok, "{to}");
        assert_eq!(inside.raw(to.ip()), Said::Ok, "{to}");
    }
}

#[test]
fn nobody_reaches_a_pod_until_it_is_enrolled() {
    let gated = Gated::new();
    let (pod, mut inside) = gated.pod();
    assert_eq!(inside.tell(&format!("listen {PORT}")), Said::Ok);
    assert_eq!(inside.tell(&format!("bind {UDP_PORT}")), Said::Ok);
    for ip in pod.ips() {
        let to = SocketAddr::from((ip, PORT));
        let error = gated.outside.connect(to, SILENCE).expect_err("was let in");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{to}: {error}");
        let error = pod.node().connect(to, SILENCE).expect_err("the node was let in");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{to}: {error}");
    }
    let before = gated.refused();
    let datagram = |ip: IpAddr| {
        let any = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let send = || UdpSocket::bind(any).unwrap().send_to(b"hello", (ip, UDP_PORT));
        gated.outside.run(send).unwrap().unwrap();
    };
    pod.ips().into_iter().for_each(datagram);
    assert!(wait_for(TIMEOUT, || gated.refused() >= before + 2.0), "not refused, or not counted");
    assert_eq!(inside.heard(UDP_PORT), 0);
    let told = record(&gated.agent, |record| record["reason"] == "gated");
    assert_eq!(told["result"], "refused", "{told}");

    // The server that listened early serves, and a SYN that was dropped is sent again.
    let (outside, to) = (gated.outside.clone(), pod.addr(PORT));
    let before = gated.refused();
    std::thread::scope(|scope| {
        let early =
            scope.spawn(move || outside.connect(to, TIMEOUT).and_then(|stream| ping(&stream, "early\n")));
        assert!(wait_for(TIMEOUT, || gated.refused() > before), "nobody came");
        gated.enrol(&pod);
        early.join().unwrap().unwrap();
    });
    pod.ips().into_iter().for_each(datagram);
    assert!(wait_for(TIMEOUT, || inside.heard(UDP_PORT) > 0), "UDP does not come");
}

/// As those are that the kernel makes for others, such as below one of SMC.
#[test]
fn sockets_that_were_not_marked_when_they_were_made_are_held() {
    let gated = Gated::new();
    gated.kubelet.cgroup(UID);
    let pod = gated.kubelet.sandbox("shop", "web", UID);
    let mut inside = Inside::of(&pod);
    assert_eq!(inside.tell(&format!("spare {PORT}")), Said::Ok);
    gated.kubelet.publish(UID).unwrap();
    for to in gated.echoes() {
        assert_eq!(inside.to("spare-dial", to), HELD, "{to}");
        let smc = inside.to("smc", to);
        assert!(smc == HELD || smc == Said::Error(EAFNOSUPPORT), "{to}: {smc:?}");
    }
    assert_eq!(inside.tell("spare-listen"), Said::Ok);
    let before = gated.refused();
    for ip in pod.ips() {
        let error = gated.outside.connect((ip, PORT).into(), SILENCE).expect_err("was let in");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{ip}: {error}");
    }
    assert!(gated.refused() > before, "not counted");
    for own in LOOPBACK {
        assert_eq!(inside.dial((own, PORT).into()), Said::Ok, "{own}");
    }

    gated.enrol(&pod);
    for ip in pod.ips() {
        dial(&gated.outside, (ip, PORT).into()).unwrap();
    }
    for to in gated.echoes() {
        assert_eq!(inside.to("spare-dial", to), Said::Ok, "{to}");
    }
}

#[test]
fn who_is_held_stays_so_when_an_agent_of_another_layout_follows() {
    let mut gated = Gated::new();
    let (pod, mut inside) = gated.pod();
    assert_eq!(inside.tell(&format!("bind {UDP_PORT}")), Said::Ok);
    gated.assert_held(&mut inside);
    gated.agent.kill().unwrap();
    let own = gated.kubelet.node.pins_dir().unwrap();
    let other = own.with_file_name("v1000");
    fs::rename(&own, &other).unwrap();
    gated.assert_held(&mut inside);
    gated.agent.restart().unwrap();
    assert!(wait_for(TIMEOUT, || !other.exists()), "{} is left", other.display());
    gated.assert_held(&mut inside);
    // The socket from before too.
    let datagram = || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"hello", (pod.ipv4(), UDP_PORT));
    let before = gated.refused();
    gated.outside.run(datagram).unwrap().unwrap();
    assert!(wait_for(TIMEOUT, || gated.refused() > before), "not refused, or not counted");
    assert_eq!(inside.heard(UDP_PORT), 0);
    gated.enrol(&pod);
    gated.assert_served(&mut inside);
}

#[test]
fn a_pod_whose_cgroup_the_agent_does_not_find_is_held() {
    let mut gated = Gated::new();
    let (pod, mut inside) = gated.pod();
    gated.assert_held(&mut inside);
    // As if kubelet had been told to work elsewhere.
    let pods = gated.kubelet.node.pods_cgroup(gated.kubelet.cgroups).unwrap();
    let aside = pods.with_file_name("aside");
    fs::create_dir(&aside).unwrap();
    let mut options = gated.kubelet.options();
    let named = options.args.iter_mut().find(|arg| **arg == *pods.to_string_lossy()).unwrap();
    *named = aside.to_string_lossy().into_owned();
    gated.agent.kill().unwrap();
    gated.agent = gated.kubelet.node.agent(options).unwrap();
    assert_eq!(gated.behind(), 1.0);
    gated.assert_held(&mut inside);
    drop(inside);
    pod.delete().unwrap();
    let other = gated.kubelet.sandbox("street", "free", "f0000000-0000-0000-0000-000000000001");
    other.set_ready(true).unwrap();
    await_value(0.0, || gated.behind());
}

#[test]
fn without_an_agent_a_pod_is_held_too() {
    let mut gated = Gated::new();
    gated.kubelet.cgroup(UID);
    gated.kubelet.publish(UID).unwrap();
    gated.agent.kill().unwrap();
    let pod = gated.kubelet.sandbox("shop", "web", UID);
    let mut inside = Inside::of(&pod);
    gated.assert_held(&mut inside);
    // kubelet asks nobody, and makes no other sandbox.
    let (status, _) = gated.kubelet.publish("another").unwrap_err();
    assert_eq!(status, UNAVAILABLE);
    gated.agent.restart().unwrap();
    gated.assert_held(&mut inside);
    gated.enrol(&pod);
    gated.assert_served(&mut inside);
}

#[test]
fn a_sandbox_that_is_made_anew_is_held_anew() {
    let mut gated = Gated::new();
    let (pod, mut inside) = gated.pod();
    gated.enrol(&pod);
    gated.assert_served(&mut inside);
    gated.agent.kill().unwrap();
    drop(inside);
    let pod = pod.restart_as_kubelet(gated.kubelet.cgroups).unwrap();
    let mut inside = Inside::of(&pod);
    gated.assert_held(&mut inside);
    gated.agent.restart().unwrap();
    gated.enrol(&pod);
    gated.assert_served(&mut inside);
}

/// As one that is static, was made before the gate was there, or was labelled while it ran.
#[test]
fn a_pod_without_the_volume_is_held_from_when_the_agent_has_found_it() {
    let mut gated = Gated::new();
    let pod = gated.kubelet.sandbox("shop", "web", UID);
    pod.opt_out().unwrap();
    pod.set_ready(true).unwrap();
    let mut inside = Inside::of(&pod);
    gated.assert_served(&mut inside);
    assert_eq!(gated.behind(), 0.0);
    pod.opt_in().unwrap();
    gated.agent.wait_enrolled([&pod]).unwrap();
    await_value(1.0, || gated.behind());
    gated.assert_served(&mut inside);
    // Nobody asks for it after a reboot.
    assert!(gated.agent.config_dump().unwrap().contains("\"gated\": false"));
    gated.agent.kill().unwrap();
    drop(inside);
    let pod = pod.restart_as_kubelet(gated.kubelet.cgroups).unwrap();
    let mut inside = Inside::of(&pod);
    gated.assert_held(&mut inside);
    gated.agent.restart().unwrap();
    gated.enrol(&pod);
    gated.assert_served(&mut inside);
    drop(inside);
    pod.delete().unwrap();
    await_value(0.0, || gated.behind());
}

#[test]
fn a_pod_outside_the_mesh_is_never_held() {
    let gated = Gated::new();
    let (_held, mut held) = gated.pod();
    // It has no volume, so that nobody is asked; and the cgroup beside it is another's.
    let free = gated.kubelet.sandbox("street", "free", "f0000000-0000-0000-0000-000000000001");
    let mut inside = Inside::of(&free);
    assert_eq!(inside.tell(&format!("listen {PORT}")), Said::Ok);
    gated.assert_served(&mut inside);
    for ip in free.ips() {
        dial(&gated.outside, (ip, PORT).into()).unwrap();
    }
    gated.assert_held(&mut held);
    // It has the volume all the same, as a user may write.
    let uid = "f0000000-0000-0000-0000-000000000002";
    let odd = gated.kubelet.run("street", "odd", uid);
    odd.set_ready(true).unwrap();
    await_value(1.0, || gated.behind());
    gated.assert_served(&mut Inside::of(&odd));
}

#[test]
fn a_pod_that_leaves_the_mesh_is_held_no_more() {
    let gated = Gated::new();
    let (pod, mut inside) = gated.pod();
    assert_eq!(inside.tell(&format!("listen {PORT}")), Said::Ok);
    gated.assert_held(&mut inside);
    gated.enrol(&pod);
    pod.opt_out().unwrap();
    gated.agent.wait_enrolled([]).unwrap();
    await_value(0.0, || gated.behind());
    gated.assert_served(&mut inside);
    dial(&gated.outside, pod.addr(PORT)).unwrap();
    // What comes back is held again whenever it is not enrolled.
    pod.opt_in().unwrap();
    gated.agent.wait_enrolled([&pod]).unwrap();
    await_value(1.0, || gated.behind());
}

#[test]
fn what_is_known_of_a_pod_goes_with_its_cgroup() {
    let mut gated = Gated::new();
    let (pod, inside) = gated.pod();
    gated.enrol(&pod);
    assert_eq!(gated.behind(), 1.0);
    assert!(gated.kubelet.target(UID).is_dir());
    // As kubelet does for a container that mounts a `subPath` of the volume.
    fs::create_dir_all(gated.kubelet.target(UID).join("sub/path")).unwrap();
    drop(inside);
    gated.kubelet.unpublish(UID).unwrap();
    gated.kubelet.unpublish(UID).unwrap();
    assert!(!gated.kubelet.target(UID).exists());
    assert_eq!(gated.behind(), 1.0, "as long as something may run in it");
    pod.delete().unwrap();
    await_value(0.0, || gated.behind());

    // Also while no agent runs.
    let (pod, inside) = gated.pod();
    gated.enrol(&pod);
    gated.agent.kill().unwrap();
    drop(inside);
    pod.delete().unwrap();
    gated.agent.restart().unwrap();
    await_value(0.0, || gated.behind());
}

#[test]
fn an_agent_that_takes_over_answers_kubelet() {
    let mut gated = Gated::new();
    let (_pod, mut inside) = gated.pod();
    let mut old = gated.agent.upgrade().unwrap();
    gated.assert_held(&mut inside);
    gated.kubelet.endpoint();
    gated.kubelet.publish(UID).unwrap();
    assert!(old.wait(Duration::from_secs(60)).unwrap().success());
    gated.kubelet.endpoint();
    gated.kubelet.publish(UID).unwrap();
    gated.assert_held(&mut inside);
}

#[test]
fn who_cleans_lets_everybody_go_until_an_agent_is_back() {
    let mut gated = Gated::new();
    let (pod, mut inside) = gated.pod();
    gated.assert_held(&mut inside);
    pod.set_ready(true).unwrap();
    gated.agent.wait_enrolled([&pod]).unwrap();
    let program = program(&gated.agent);
    gated.agent.kill().unwrap();
    let clean =
        Command::new(program).arg("clean").arg("--bpffs").arg(gated.kubelet.node.bpffs_dir()).output();
    assert!(clean.unwrap().status.success());
    gated.assert_served(&mut inside);
    gated.agent.restart().unwrap();
    gated.agent.wait_enrolled([&pod]).unwrap();
    // kubelet does not ask again, but its directory says whom it has asked for.
    await_value(1.0, || gated.behind());
}
