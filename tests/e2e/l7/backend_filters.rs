//! Filters of the backends of an HTTPRoute.

use orlop_tests::traffic::request;

use super::gateway_api::{route, versions};
use super::scripted::{Reply, Scripted};
use crate::mesh::{NAMESPACE, await_value};

#[test]
fn the_filters_of_a_backend_are_for_its_requests_alone() {
    let versions = versions(&[]);
    let stage = &versions.stage;
    let v1 = Scripted::start(&versions.pods[0], |_| Reply::Answer(200, "v1".to_owned()));
    let v2 = Scripted::start(&versions.pods[1], |_| Reply::Answer(200, "v2".to_owned()));
    route(
        stage,
        "HTTPRoute",
        NAMESPACE,
        "- matches: [{path: {value: /rewritten}}]\n  filters:\n  - type: URLRewrite\n    \
           urlRewrite: {hostname: inner, path: {type: ReplaceFullPath, replaceFullPath: /rule}}\n  \
           backendRefs:\n  - name: v1\n    port: 80\n    filters:\n    - type: URLRewrite\n      \
           urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /own}}\n  - {name: v2, port: 80}\n\
         - matches: [{path: {value: /redirected}}]\n  \
           backendRefs:\n  - name: v1\n    port: 80\n    filters:\n    - type: RequestRedirect\n      \
           requestRedirect: {hostname: example.com, statusCode: 301}\n  - {name: v2, port: 80}\n\
         - matches: [{path: {value: /mirrored}}]\n  \
           backendRefs:\n  - name: v1\n    port: 80\n    filters:\n    - type: RequestMirror\n      \
           requestMirror: {backendRef: {name: v2, port: 80}}\n\
         - matches: [{path: {value: /alone}}]\n  backendRefs: [{name: v1, port: 80}]",
    );
    let mut stream = stage.connect();
    let mut ask =
        |path: &str| request(&mut stream, &format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n")).unwrap();
    assert!((0..40).all(|_| ask("/rewritten").status == 200));
    // What a backend does not say itself the rule does.
    for (server, path) in [(&v1, "/own"), (&v2, "/rule")] {
        let asked = server.asked();
        assert!(asked.len().abs_diff(20) <= 2, "{path}: {}", asked.len());
        let line = format!("GET {path} HTTP/1.1");
        assert!(
            asked.iter().all(|asked| asked.line == line && asked.headers["host"] == "inner"),
            "{asked:?}"
        );
    }
    let before = v1.count();
    let mut redirected = 0_usize;
    for _ in 0..40 {
        let answer = ask("/redirected");
        match answer.status {
            301 => redirected += 1,
            _ => assert_eq!(answer.text(), "v2"),
        }
        let location = (answer.status == 301).then_some("http://example.com/redirected");
        assert_eq!(answer.header("location"), location);
    }
    assert!(redirected.abs_diff(20) <= 2, "{redirected} of 40 were redirected, not half");
    assert_eq!(v1.count(), before);
    let copies = |path: &str| {
        let line = format!("GET {path} HTTP/1.1");
        v2.asked().iter().filter(|asked| asked.line == line).count()
    };
    for _ in 0..10 {
        assert_eq!((ask("/alone").text(), ask("/mirrored").text()), ("v1".to_owned(), "v1".to_owned()));
    }
    await_value(10, || copies("/mirrored"));
    assert_eq!(copies("/alone"), 0);
}
