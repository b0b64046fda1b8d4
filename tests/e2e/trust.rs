//! Whom the mesh trusts while it runs: roots that come and go, and certificates that are revoked.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use h2::client::Builder;
use orlop_identity::{CertificateAuthority, DEFAULT_LIFETIME, EmbeddedCa, Identities};
use orlop_tests::traffic::ReadUninterrupted;
use orlop_tests::{Agent, AgentOptions, PodSpec, wait_for};
use rustls::ClientConfig;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::hbone::{connect_request, hbone, identities, identity, trust_domain, within};
use crate::mesh::{Mesh, failed};
use crate::pair::{Pair, TIMEOUT, dial, ping, program, record};

/// `orlop ca` on the testbed's own authority.
#[track_caller]
fn ca(pair: &Pair, verb: &str, args: &[&str]) {
    let mut command = Command::new(program(&pair.near));
    let output =
        command.args(["ca", verb, "--ca-dir"]).arg(pair.testbed.ca_dir()).args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn dump(agent: &Agent) -> Value {
    serde_json::from_str(&agent.config_dump().unwrap()).unwrap()
}

/// The serial number of the agent's own certificate.
fn serial(agent: &Agent) -> String {
    dump(agent)["certificates"][0]["serial"].as_str().unwrap().to_owned()
}

fn roots(agent: &Agent) -> Vec<Value> {
    dump(agent)["trust"]["roots"].as_array().unwrap().clone()
}

#[test]
fn the_root_is_rotated_under_load_and_no_connection_fails() {
    // A tunnel lives for one connection, so that each one shakes hands.
    let args = ["--log-format", "json", "--tunnel-idle-timeout", "1ms"].map(str::to_owned).into();
    let pair = Pair::with(AgentOptions { args, ..AgentOptions::default() });
    let server = pair.server.serve_echo(80).unwrap();
    let to = [server.addr(), server.addr6()];
    // In tunnels of their own, as they come from another pod.
    let other = pair.pod(&pair.near, "other", PodSpec::new().service_account("buyer"));
    let kept = to.map(|to| dial(&other, to).unwrap());
    let mut renewed = Vec::new();
    let (first, before) = (roots(&pair.near), [&pair.near, &pair.far].map(serial));
    assert_eq!(first.len(), 1);

    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failures = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let number = made.fetch_add(1, Ordering::Relaxed);
                failures.extend(dial(&pair.client, to[number % 2]).err().map(|error| error.to_string()));
                // Long enough for the tunnel to end.
                thread::sleep(Duration::from_millis(15));
            }
            failures
        });
        let more = |than: usize| {
            let more = || made.load(Ordering::Relaxed) > than + 20;
            assert!(wait_for(4 * TIMEOUT, more), "the load stands still");
        };
        more(0);
        ca(&pair, "rotate", &["--wait", "3s"]);
        for (agent, before) in [&pair.near, &pair.far].into_iter().zip(&before) {
            assert!(wait_for(TIMEOUT, || serial(agent) != *before), "not renewed");
            assert_eq!(roots(agent).len(), 2);
        }
        more(made.load(Ordering::Relaxed));
        // The tunnel of the kept ones is open, and takes no more.
        pair.near.wait_log(|log| log.contains("open no more streams"), 4 * TIMEOUT).unwrap();
        renewed.extend(to.map(|to| dial(&other, to).unwrap()));
        ca(&pair, "rotate", &["--finish", "--wait", "3s"]);
        for agent in [&pair.near, &pair.far] {
            assert!(wait_for(TIMEOUT, || roots(agent).len() == 1), "{:?}", roots(agent));
            assert_ne!(roots(agent), first);
        }
        more(made.load(Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    println!("{} connections made, {} failed", made.load(Ordering::Relaxed), failures.len());
    assert_eq!(failures, [""; 0]);
    renewed.iter().for_each(|stream| ping(stream, "still here?\n").unwrap());
    // These were opened with certificates of a root that is gone.
    for mut stream in &kept {
        let end = stream.read_uninterrupted(&mut [0; 1]);
        assert!(end.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset), "{end:?}");
    }
    let reasons = [&pair.near, &pair.far].map(|agent| record(agent, |record| record["result"] == "cut"));
    assert!(reasons.iter().any(|record| record["reason"] == "untrusted_certificate"), "{reasons:#?}");
}

#[test]
fn what_a_revoked_client_has_open_is_cut_and_it_gets_another_certificate() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let open = [server.addr(), server.addr6()].map(|to| dial(&pair.client, to).unwrap());
    let revoked = serial(&pair.near);

    ca(&pair, "revoke", &[&revoked]);
    for mut stream in &open {
        let end = stream.read_uninterrupted(&mut [0; 1]);
        assert!(end.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset), "{end:?}");
    }
    let cut = record(&pair.far, |record| record["result"] == "cut");
    assert_eq!(cut["reason"], "revoked_certificate", "{cut}");

    // The certificate is revoked, not the identity: its node has it renewed.
    assert!(wait_for(TIMEOUT, || serial(&pair.near) != revoked), "not renewed");
    assert!(wait_for(TIMEOUT, || dial(&pair.client, server.addr()).is_ok()), "no way back");
}

#[test]
fn what_leads_to_a_revoked_server_is_cut() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let mut stream = dial(&pair.client, server.addr()).unwrap();
    ca(&pair, "revoke", &[&serial(&pair.far)]);
    let end = stream.read_uninterrupted(&mut [0; 1]);
    assert!(end.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset), "{end:?}");
    let cut = record(&pair.near, |record| record["result"] == "cut");
    assert_eq!(cut["reason"], "revoked_certificate", "{cut}");
    assert!(wait_for(TIMEOUT, || dial(&pair.client, server.addr6()).is_ok()), "no way back");
}

/// Whether the server's agent answers a CONNECT in a new tunnel of this client's.
fn is_served(mesh: &Mesh, config: &Arc<ClientConfig>) -> bool {
    let (config, to, authority) = (Arc::clone(config), hbone(&mesh.server), mesh.server.addr(80).to_string());
    within(&mesh.client, async move || {
        let tcp = TcpStream::connect(to).await.unwrap();
        let name = rustls::pki_types::ServerName::IpAddress(to.ip().into());
        let Ok(tls) = TlsConnector::from(config).connect(name, tcp).await else { return false };
        let Ok((mut send, connection)) = Builder::new().handshake::<_, bytes::Bytes>(tls).await else {
            return false;
        };
        tokio::task::spawn_local(connection);
        let Ok((answer, _)) = send.send_request(connect_request(&authority, &[]), false) else {
            return false;
        };
        answer.await.is_ok_and(|answer| answer.status() == 200)
    })
}

#[test]
fn a_revoked_certificate_is_refused() {
    let mesh = Mesh::second_only(&[]);
    let _server = mesh.server.serve_echo(80).unwrap();
    // A thief has it, and will not renew it.
    let thief = identities(&mesh.testbed, &["client"]);
    let config = thief.client_config(&identity("client"), &identity("server")).unwrap();
    assert!(is_served(&mesh, &config));

    let serial = orlop_identity::parse_serial(&thief.dump()[0].serial.clone().unwrap()).unwrap();
    EmbeddedCa::revoke(&mesh.testbed.ca_dir(), &trust_domain(), &[serial]).unwrap();
    assert!(wait_for(TIMEOUT, || dump(mesh.server_agent())["trust"]["revoked"] == 1));
    assert!(!is_served(&mesh, &config));
    assert!(wait_for(TIMEOUT, || failed(mesh.server_agent(), "revoked_certificate") == 1.0));

    // An honest client of the same identity is served.
    let honest = identities(&mesh.testbed, &["client"]);
    assert!(is_served(&mesh, &honest.client_config(&identity("client"), &identity("server")).unwrap()));
}

#[test]
fn several_roots_are_trusted_at_once_and_as_long_as_they_are_there() {
    let mesh = Mesh::second_only(&[]);
    let _server = mesh.server.serve_echo(80).unwrap();
    let (ours, theirs) = (mesh.testbed.ca_dir(), mesh.testbed.ca_dir().join("../their-ca"));
    let other = Arc::new(EmbeddedCa::open(&theirs, &trust_domain()).unwrap());
    // Each trusts the other: the client of another authority must accept the server of ours, too.
    let root = |dir: &std::path::Path| fs::read(dir.join("root-cert.pem")).unwrap();
    fs::write(theirs.join("trust.pem"), root(&ours)).unwrap();
    other.refresh().unwrap();
    assert_eq!(other.roots().len(), 2);
    let client = Identities::new(other, trust_domain(), DEFAULT_LIFETIME);
    client.ensure(&identity("client")).unwrap();
    let config = client.client_config(&identity("client"), &identity("server")).unwrap();
    assert!(!is_served(&mesh, &config), "nobody trusts their root yet");

    let bundle = ours.join("trust.pem");
    fs::write(&bundle, root(&theirs)).unwrap();
    fs::set_permissions(&bundle, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(wait_for(TIMEOUT, || roots(mesh.server_agent()).len() == 2));
    assert!(is_served(&mesh, &config));

    fs::remove_file(&bundle).unwrap();
    assert!(wait_for(TIMEOUT, || roots(mesh.server_agent()).len() == 1));
    assert!(!is_served(&mesh, &config), "their root is no longer trusted");
}
