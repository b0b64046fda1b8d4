//! What GRPCRoutes match and do besides choosing by service and method.

use bytes::Bytes;

use super::gateway_api::{route, versions};
use super::h2c;
use crate::hbone::within;
use crate::mesh::{NAMESPACE, await_value};

#[test]
fn a_grpc_route_matches_by_expressions_and_headers_and_changes_and_copies_calls() {
    let versions = versions(&[]);
    let stage = &versions.stage;
    let [_v1, v2] = versions.pods.each_ref().map(|pod| h2c::Server::start(pod, 80));
    // Which rule it is, the answer says.
    let rule = |name: &str, of: &str, filters: &str| {
        format!(
            "- matches: [{of}]\n  backendRefs: [{{name: v1, port: 80}}]\n  filters:\n  - type: ResponseHeaderModifier\n    \
             responseHeaderModifier: {{set: [{{name: seen-by, value: {name}}}]}}\n{filters}"
        )
    };
    let rules = rule(
        "expression",
        "{method: {type: RegularExpression, service: 'shop[.]W.*', method: 'Buy|Sell'}}",
        "",
    ) + &rule("header", "{headers: [{name: tier, value: gold}]}", "")
        + &rule(
            "changed",
            "{method: {service: shop.Web, method: Set}}",
            "  - type: RequestHeaderModifier\n    requestHeaderModifier: {set: [{name: x-set, value: new}]}\n  \
             - type: RequestMirror\n    requestMirror: {backendRef: {name: v2, port: 80}}\n",
        );
    route(stage, "GRPCRoute", NAMESPACE, &rules);
    let web = stage.web();
    within(&stage.mesh.client, async move || {
        let client = h2c::connect(web).await;
        let none: &[(&str, &str)] = &[];
        for (path, headers, by, set) in [
            ("/shop.Web/Buy", none, Some("expression"), None),
            ("/shop.Work/Sell", none, Some("expression"), None),
            // All of it must match.
            ("/shop.Web/Buyer", none, None, None),
            ("/the.shop.Web/Buy", none, None, None),
            ("/other.Any/Do", &[("tier", "gold")], Some("header"), None),
            ("/other.Any/Do", &[("tier", "silver")], None, None),
            ("/shop.Web/Set", &[("x-set", "old")], Some("changed"), Some("new")),
        ] {
            let (answer, mut send) = h2c::ask_with(&client, path, headers).await;
            send.send_data(Bytes::new(), true).unwrap();
            let answer = answer.await.unwrap();
            let header = |name| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(header("seen-by").as_deref(), by, "{path} {headers:?}");
            assert_eq!(header("seen-set").as_deref(), set, "{path} {headers:?}");
            // UNIMPLEMENTED, where no rule matches.
            assert_eq!(header("grpc-status").as_deref(), by.is_none().then_some("12"), "{path} {headers:?}");
        }
    });
    await_value(1, || v2.count());
}
