//! Rules that ask who the client is.

use orlop_tests::{Pod, PodSpec};

use super::routes::Versions;
use crate::mesh::{NAMESPACE, TIMEOUT};

#[test]
fn rules_tell_clients_by_their_labels_and_their_namespace() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let _servers = versions.pods.each_ref().map(|pod| pod.serve_http(80).unwrap());
    stage.mesh.testbed.world().enrolled_namespace("far").unwrap();
    let client = |namespace: &str, name: &str, app: &str| {
        let spec = PodSpec::new().service_account("client").label("app", app);
        stage.mesh.nodes[0].pod(namespace, name, spec).unwrap()
    };
    let tester = client(NAMESPACE, "tester", "tester");
    let [far, far_tester] =
        [("far", "other"), ("far-tester", "tester")].map(|(name, app)| client("far", name, app));
    let all = [&stage.mesh.client, &tester, &far, &far_tester];
    stage.mesh.client_agent().wait_enrolled(all).unwrap();
    versions.route(
        "- match: [{uri: {exact: /label}, sourceLabels: {app: tester}}, {uri: {exact: /namespace}, sourceNamespace: far},\n\
         \x20   {uri: {exact: /both}, sourceLabels: {app: tester}, sourceNamespace: far}]\n\
         \x20 route: [{destination: {host: web, subset: v2}}]\n\
         - route: [{destination: {host: web, subset: v1}}]",
    );
    let pod_of = |client: &Pod, path: &str| {
        client.http_get(stage.web(), path, TIMEOUT).unwrap().field("pod").unwrap_or_default()
    };
    for (path, matches) in [
        ("/label", [false, true, false, true]),
        ("/namespace", [false, false, true, true]),
        ("/both", [false, false, false, true]),
    ] {
        for (client, matches) in all.into_iter().zip(matches) {
            let wanted = if matches { "shop/v2" } else { "shop/v1" };
            assert_eq!(pod_of(client, path), wanted, "{path} of {}", client.name());
        }
    }
}
