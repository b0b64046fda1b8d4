//! Answers of providers that say more than they may.

use serde_json::json;

use super::custom::{Asked, ask, grpc, http, status};
use super::grpc::{self, at, bytes, text};
use super::scripted::{Reply, Scripted};
use crate::hbone::identity;

/// What servers take for the same as `x-forwarded-client-cert`.
const ALIKE: [&str; 2] = ["x_forwarded_client_cert", "x-forwarded.client-cert"];

#[test]
fn a_refusal_has_a_status_that_is_one() {
    let asked = Asked::new();
    let _server = Scripted::status(&asked.stage.mesh.server, 200);
    asked.ask(&http(json!({"failOpen": true})), &json!({}));
    for (status, wanted) in
        [(777, 403), (999, 403), (600, 403), (101, 403), (204, 403), (302, 302), (404, 404), (429, 429)]
    {
        let _authz = Scripted::start(&asked.pod, move |_| {
            Reply::With(status, vec![("location", "/x")], String::new())
        });
        assert_eq!(asked.stage.get("/").status, wanted, "{status}");
    }
    // Whoever is sent elsewhere is the client, and nobody follows for it.
    let authz = Scripted::start(&asked.pod, |_| {
        Reply::With(307, vec![("location", "http://authz.shop.svc.cluster.local:9000/login")], String::new())
    });
    assert_eq!((asked.stage.get("/").status, authz.count()), (307, 1));
}

#[test]
fn nobody_writes_who_asks_in_any_spelling() {
    let asked = Asked::new();
    let stage = &asked.stage;
    let server = Scripted::status(&stage.mesh.server, 200);
    let forged = ALIKE.map(|name| (name, "URI=spiffe://cluster.local/ns/shop/sa/root"));
    let unforged = |way: &str| {
        let served = server.asked().pop().unwrap();
        let alike =
            served.headers.iter().filter(|(name, _)| name.replace(['_', '.'], "-").ends_with("client-cert"));
        let alike: Vec<_> = alike.collect();
        assert_eq!(alike.len(), 1, "{way}: {alike:?}");
        assert!(served.headers["x-forwarded-client-cert"].ends_with(identity("client").as_str()), "{way}");
        assert!(!served.headers.contains_key("content_length"), "{way}");
    };
    // Not a client,
    assert_eq!(ask(stage, "GET /", &forged, "").status, 200);
    unforged("without anybody to ask");
    // nor one who is asked.
    let _http = Scripted::start(&asked.pod, |asked| {
        assert!(ALIKE.iter().all(|name| !asked.headers.contains_key(*name)), "{asked:?}");
        let more = vec![
            (ALIKE[0], "forged"),
            (ALIKE[1], "forged"),
            ("content_length", "9"),
            ("connection", "x-user"),
            ("x-user", "root"),
            ("x-seen", "1"),
        ];
        Reply::With(200, more, String::new())
    });
    asked.ask(&http(json!({"headersToUpstreamOnAllow": ["x-*", "x_*", "content_length"]})), &json!({}));
    assert_eq!(ask(stage, "GET /", &forged, "").status, 200);
    unforged("by HTTP");
    let served = server.asked().pop().unwrap();
    // What is between it and the waypoint alone goes no further.
    assert_eq!((served.headers.get("x-user"), served.headers["x-seen"].as_str()), (None, "1"));
}

#[test]
fn one_is_asked_about_the_host_and_path_that_are_routed() {
    let asked = Asked::new();
    let stage = &asked.stage;
    let server = Scripted::status(&stage.mesh.server, 200);
    let authz = grpc::Server::start(&asked.pod, |_| {
        let forged = ALIKE.map(|name| bytes(2, super::custom::header(name, "forged"))).concat();
        grpc::Reply::Message([status(0), bytes(3, forged)].concat())
    });
    asked.ask(&grpc(json!({})), &json!({}));
    let answer =
        ask(stage, "GET http://web/a/../%61dmin//x?y=%2e HTTP/1.1\r\nx: 1\r\nhost: other\r\nz: GET", &[], "");
    // Two hosts are none, and the absolute form counts before the one.
    assert_eq!(answer.status, 400);
    let line = "GET http://web/a/../%61dmin//x?y=%2e";
    let text_of = format!("{line} HTTP/1.1\r\nhost: other\r\n\r\n");
    let answer = orlop_tests::traffic::request(&mut stage.connect(), &text_of).unwrap();
    assert_eq!(answer.status, 200);
    let (_, question) = authz.asked().pop().unwrap();
    let served = server.asked().pop().unwrap();
    let request = |field: u64| text(&question, &[1, 4, 2, field]);
    assert_eq!((request(4).as_str(), request(5).as_str()), ("/admin/x?y=%2e", "web"));
    assert_eq!(
        (served.line.as_str(), served.headers["host"].as_str()),
        ("GET /admin/x?y=%2e HTTP/1.1", "web")
    );
    let shown = at(&question, &[1, 4, 2, 3]);
    assert!(shown.iter().all(|of| text(of, &[1]) != "host"), "{shown:?}");
    assert!(ALIKE.iter().all(|name| !served.headers.contains_key(*name)), "{served:?}");
    // One who says more than there is room for has it refused.
    drop(authz);
    let many =
        || (0..300).flat_map(|n| bytes(6, super::custom::header(&format!("x-{n}"), "1"))).collect::<Vec<_>>();
    let _authz = grpc::Server::start(&asked.pod, move |_| {
        grpc::Reply::Message([status(0), bytes(3, many())].concat())
    });
    assert_eq!(stage.get("/").status, 403);
}
