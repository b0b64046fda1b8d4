//! What rules of VirtualServices do to requests and to answers, field by field.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use orlop_tests::traffic::{Response, request};
use orlop_tests::wait_for;

use super::Stage;
use super::routes::Versions;
use super::scripted::{Reply, Scripted};
use crate::mesh::{TIMEOUT, await_value};

/// One request on a connection of its own.
fn ask(stage: &Stage, line: &str, headers: &str) -> Response {
    let ask =
        format!("{line} HTTP/1.1\r\nhost: web\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n");
    request(&mut stage.connect(), &ask).unwrap()
}

/// How often something was asked for.
fn times(server: &Scripted, path: &str) -> usize {
    server.asked().iter().filter(|asked| asked.line.split(' ').nth(1) == Some(path)).count()
}

#[test]
fn a_mirror_gets_none_half_or_all() {
    let versions = Versions::new();
    let _server = Scripted::status(&versions.pods[0], 200);
    let mirror = Scripted::status(&versions.pods[1], 200);
    let rule = |path: &str, percent: u32| {
        format!(
            "- match: [{{uri: {{exact: {path}}}}}]\n  mirror: {{host: web, subset: v2}}\n  \
             mirrorPercentage: {{value: {percent}}}\n  route: [{{destination: {{host: web, subset: v1}}}}]\n"
        )
    };
    versions.route(&(rule("/none", 0) + &rule("/half", 50) + &rule("/all", 100)));
    let mut stream = versions.stage.connect();
    for path in ["/none", "/half", "/all"] {
        for _ in 0..40 {
            let answer = request(&mut stream, &format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n")).unwrap();
            assert_eq!(answer.status, 200, "{path}");
        }
    }
    await_value(40, || times(&mirror, "/all"));
    let half = || times(&mirror, "/half");
    assert!(wait_for(TIMEOUT, || half() >= 18), "{} of 40 were copied, not half", half());
    assert!(half() <= 22, "{} of 40 were copied, not half", half());
    assert_eq!(times(&mirror, "/none"), 0);
}

#[test]
fn other_origins_are_told_all_that_a_rule_lets_them() {
    let versions = Versions::new();
    let server = Scripted::status(&versions.pods[0], 200);
    let cors = "allowOrigins: [{exact: \"https://a.example\"}], allowMethods: [PUT], allowHeaders: [x-a, x-b], \
        exposeHeaders: [x-c], allowCredentials: true, maxAge: 90s";
    versions.route(&format!(
        "- match: [{{uri: {{exact: /ignore}}}}]\n  corsPolicy: {{{cors}, unmatchedPreflights: IGNORE}}\n  \
           route: [{{destination: {{host: web, subset: v1}}}}]\n\
         - match: [{{uri: {{exact: /forward}}}}]\n  corsPolicy: {{{cors}, unmatchedPreflights: FORWARD}}\n  \
           route: [{{destination: {{host: web, subset: v1}}}}]"
    ));
    let stage = &versions.stage;
    let (ours, other) = ("origin: https://a.example\r\n", "origin: https://b.example\r\n");
    let preflight = "access-control-request-method: PUT\r\naccess-control-request-headers: x-a\r\n";
    let answer = ask(stage, "OPTIONS /ignore", &format!("{ours}{preflight}"));
    for (name, wanted) in [
        ("access-control-allow-origin", "https://a.example"),
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-headers", "x-a,x-b"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "90"),
        ("access-control-expose-headers", "x-c"),
    ] {
        assert_eq!(answer.header(name), Some(wanted), "{name}");
    }
    assert_eq!(server.count(), 0);
    let answer = ask(stage, "PUT /ignore", ours);
    assert_eq!(answer.header("access-control-expose-headers"), Some("x-c"));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(server.count(), 1);
    // Preflights of others.
    for (path, asked) in [("/ignore", 1), ("/forward", 2)] {
        let answer = ask(stage, &format!("OPTIONS {path}"), &format!("{other}{preflight}"));
        assert_eq!((answer.header("access-control-allow-origin"), server.count()), (None, asked), "{path}");
    }
}

#[test]
fn paths_are_rewritten_and_redirects_name_host_port_and_scheme() {
    let versions = Versions::new();
    let server = Scripted::status(&versions.pods[0], 200);
    let inner = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: inner, namespace: shop}\n\
        spec:\n  http:\n  - match: [{uri: {exact: /a/x}}]\n    rewrite: {uri: /new}\n    \
        route: [{destination: {host: web, subset: v1}}]\n";
    versions.stage.mesh.testbed.world().write("inner.yaml", inner).unwrap();
    let to_v1 = "route: [{destination: {host: web, subset: v1}}]";
    versions.route(&format!(
        "- match: [{{uri: {{prefix: /re/}}}}]\n  {to_v1}\n  \
           rewrite: {{uriRegexRewrite: {{match: '^/re/(\\w+)/(\\d+)', rewrite: '/\\2/\\1'}}}}\n\
         - match: [{{uri: {{prefix: /CASE}}, ignoreUriCase: true}}]\n  rewrite: {{uri: /new}}\n  {to_v1}\n\
         - match: [{{uri: {{prefix: /a}}}}]\n  delegate: {{name: inner}}\n\
         - match: [{{uri: {{exact: /1}}}}]\n  redirect: {{authority: other, port: 8443, scheme: https, uri: /x}}\n\
         - match: [{{uri: {{exact: /2}}}}]\n  redirect: {{derivePort: FROM_PROTOCOL_DEFAULT, scheme: https}}\n\
         - match: [{{uri: {{exact: /3}}}}]\n  redirect: {{derivePort: FROM_REQUEST_PORT, scheme: https}}\n\
         - match: [{{uri: {{exact: /4}}}}]\n  redirect: {{authority: other, redirectCode: 307}}\n\
         - match: [{{uri: {{exact: /5}}, headers: {{x-there: {{regex: '*'}}}}}}]\n  directResponse: {{status: 201}}\n\
         - match: [{{uri: {{exact: /5}}}}]\n  directResponse: {{status: 202}}"
    ));
    let mut stream = versions.stage.connect();
    let mut ask = |path: &str, more: &str| {
        request(&mut stream, &format!("GET {path} HTTP/1.1\r\nhost: web:8080\r\n{more}\r\n")).unwrap()
    };
    for (path, wanted) in [("/re/users/7?q", "/7/users?q"), ("/case/x", "/new/x"), ("/a/x", "/new")] {
        assert_eq!(ask(path, "").status, 200, "{path}");
        assert_eq!(server.asked().pop().unwrap().line, format!("GET {wanted} HTTP/1.1"));
    }
    for (path, status, location) in [
        ("/1", 301, "https://other:8443/x"),
        ("/2", 301, "https://web/2"),
        ("/3", 301, "https://web:80/3"),
        ("/4", 307, "http://other/4"),
    ] {
        let answer = ask(path, "");
        assert_eq!((answer.status, answer.header("location")), (status, Some(location)), "{path}");
    }
    assert_eq!((ask("/5", "x-there: whatever\r\n").status, ask("/5", "").status), (201, 202));
    // A DestinationRule that the waypoint's namespace may not see names no subset.
    let world = versions.stage.mesh.testbed.world();
    let rule = std::fs::read_to_string(world.dir().join("subsets.yaml")).unwrap() + "  exportTo: [far]\n";
    versions.stage.change(|| world.write("subsets.yaml", &rule).unwrap());
    let asked = server.count();
    assert_eq!((ask("/case/hidden", "").status, server.count()), (503, asked));
    versions.stage.record(|record| record["path"] == "/case/hidden" && record["flags"] == "NC");
}

#[test]
fn headers_tell_of_the_request_and_never_what_a_client_says_instead() {
    let versions = Versions::new();
    let server = Scripted::status(&versions.pods[0], 200);
    versions.route(
        "- match: [{uri: {exact: /direct}}]\n  directResponse: {status: 200}\n  \
           headers: {response: {set: {x-path: \"%REQ(:path)%\"}}}\n\
         - headers:\n    request:\n      set: {x-from: \"%DOWNSTREAM_REMOTE_ADDRESS%\", x-missing: \"%REQ(x-nothing)%\", \
           x-peer: \"%DOWNSTREAM_PEER_URI_SAN%\"}\n      \
           add: {x-all: \"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%|%REQ(x-none?X-User):2%|%PROTOCOL%|100%%\"}\n    \
           response: {set: {x-host: \"%HOSTNAME%\", x-at: \"%UPSTREAM_HOST%\"}}\n  \
           route:\n  - destination: {host: web, subset: v1}\n    headers: {response: {set: {x-user: \"%REQ(x-user)%\"}}}",
    );
    let stage = &versions.stage;
    let answer = ask(stage, "GET /told", "x-user: bob\r\nx-from: me\r\nx-peer: me\r\nx-missing: me\r\n");
    let record = stage.record(|record| record["path"] == "/told");
    let text = |name: &str| record[name].as_str().unwrap();
    let client: SocketAddr = text("src").parse().unwrap();
    assert!(stage.mesh.client.ips().contains(&client.ip()), "{client}");
    let asked = server.asked().pop().unwrap().headers;
    assert_eq!((&*asked["x-from"], &*asked["x-peer"]), (text("src"), text("src_identity")));
    assert_eq!(asked["x-all"], format!("{}|bo|HTTP/1.1|100%", client.ip()));
    assert!(!asked.contains_key("x-missing"));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!((answer.header("x-host"), answer.header("x-at")), (Some(host.trim_end()), Some(text("dst"))));
    assert_eq!(answer.header("x-user"), Some("bob"));
    assert_eq!(ask(stage, "GET /direct?q", "").header("x-path"), Some("/direct?q"));
}

#[test]
fn faults_and_deadlines_answer_grpc_as_it_knows_them() {
    let versions = Versions::new();
    let server = Scripted::start(&versions.pods[0], |asked| {
        if asked.line.contains("/late") {
            loop {
                thread::park();
            }
        }
        Reply::Answer(200, String::new())
    });
    let to_v1 = "route: [{destination: {host: web, subset: v1}}]";
    versions.route(&format!(
        "- match: [{{uri: {{exact: /abort}}}}]\n  fault: {{abort: {{grpcStatus: RESOURCE_EXHAUSTED}}}}\n  {to_v1}\n\
         - match: [{{uri: {{exact: /delay}}}}]\n  \
           fault: {{delay: {{fixedDelay: 10ms, percentage: {{value: 25}}}}}}\n  {to_v1}\n\
         - match: [{{uri: {{exact: /late-rule}}}}]\n  timeout: 1s\n  {to_v1}\n\
         - {to_v1}"
    ));
    let stage = &versions.stage;
    let call = |path: &str, more: &str| {
        let answer =
            ask(stage, &format!("POST {path}"), &format!("content-type: application/grpc\r\n{more}"));
        (answer.status, answer.header("grpc-status").map(str::to_owned))
    };
    let status = |status: &str| (200, Some(status.to_owned()));
    assert_eq!((call("/abort", ""), server.count()), (status("8"), 0));
    let mut stream = stage.connect();
    for _ in 0..40 {
        request(&mut stream, "GET /delay HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
    }
    let of_delay =
        || stage.records().into_iter().filter(|record| record["path"] == "/delay").collect::<Vec<_>>();
    await_value(40, || of_delay().len());
    let waited = of_delay().iter().filter(|record| record["flags"] == "DI").count();
    assert!(waited.abs_diff(10) <= 2, "{waited} of 40 had to wait, not a quarter");
    // The client's own deadline, with no rule's; then the rule's, which is shorter, and what is no deadline.
    for (path, given, passed, says) in [
        ("/late", "2S", None, "4"),
        ("/late-rule", "1H", None, "14"),
        ("/late-rule", "0S", Some("0S"), "14"),
        ("/late-rule", "1s", Some("1s"), "14"),
    ] {
        let (began, before) = (Instant::now(), server.count());
        assert_eq!(call(path, &format!("grpc-timeout: {given}\r\n")), status(says), "{path} {given}");
        assert!(began.elapsed() >= Duration::from_secs(1), "{path} {given}");
        await_value(before + 1, || server.count());
        let told = server.asked().pop().unwrap().headers["grpc-timeout"].clone();
        match passed {
            Some(passed) => assert_eq!(told, passed),
            // What is left of it.
            None => assert!(told != given && told.ends_with(['u', 'm', 'S']), "{given}: {told}"),
        }
    }
    stage.record(|record| record["path"] == "/late" && record["flags"] == "UT");
    // What is no gRPC has no such deadline.
    assert_eq!(ask(stage, "GET /soon", "grpc-timeout: 1n\r\n").status, 200);
}
