use std::fs;

use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use orlop_kube::{ClusterWorld, Kinds, Pods, read_world};
use orlop_model::{Settings, World, compile};
use orlop_tests::Testbed;
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::gateway_api::define;
use super::kubelet::Kubelet;
use crate::mesh::TIMEOUT;

#[test]
fn the_api_and_a_directory_of_its_objects_give_the_same_world() {
    let kubernetes = Kubernetes::shared();
    kubernetes.define_istio();
    define(&kubernetes);
    let namespace = kubernetes.namespace("same", &[("orlop.dev/mesh", "enabled")]);
    let metadata = |name: &str| json!({"name": name, "namespace": namespace, "labels": {"app": "web"}});
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata("web"),
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }));
    // Without a node the controller makes no endpoint.
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": namespace, "labels": {"topology.kubernetes.io/zone": "here"}},
    }));
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata("web-0"),
        "spec": {"nodeName": namespace, "containers": [{"name": "web", "image": "web", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": "10.210.0.1", "podIPs": [{"ip": "10.210.0.1"}]},
    }));
    kubernetes.apply(&json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata("buyers"),
        "spec": {"rules": [{"from": [{"source": {"serviceAccounts": ["buyer"]}}]}]},
    }));
    kubernetes.apply(&json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": metadata("strict"),
        "spec": {"mtls": {"mode": "STRICT"}},
    }));
    kubernetes.apply(&json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": metadata("outside"),
        "spec": {
            "hosts": ["outside.example"], "addresses": ["10.211.0.1"], "resolution": "STATIC",
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
            "workloadSelector": {"labels": {"app": "vm"}},
        },
    }));
    kubernetes.apply(&json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": metadata("vm"),
        "spec": {"address": "10.212.0.1", "labels": {"app": "vm"}},
    }));
    kubernetes.apply(&json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": metadata("web"),
        "spec": {"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web", "subset": "v1"}}]}]},
    }));
    kubernetes.apply(&json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": metadata("web"),
        "spec": {"host": "web", "subsets": [{"name": "v1", "labels": {"app": "web"}}]},
    }));
    kubernetes.apply(&json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication", "metadata": metadata("tokens"),
        "spec": {
            "targetRefs": [{"kind": "Service", "group": "", "name": "web"}],
            "jwtRules": [{"issuer": "https://idp.example", "audiences": ["web"], "forwardOriginalToken": true}],
        },
    }));
    kubernetes.apply(&json!({
        "apiVersion": "orlop.dev/v1alpha1", "kind": "RateLimit", "metadata": metadata("web"),
        "spec": {
            "targetRefs": [{"kind": "Service", "group": "", "name": "web"}],
            "limits": [{
                "name": "callers", "requests": 5, "unit": "minute", "burst": 2, "by": ["source.principal"],
                "match": [{"from": [{"source": {"notNamespaces": ["infra"]}}], "to": [{"operation": {"methods": ["GET"]}}]}],
            }, {"name": "all", "shared": {"service": "web.x.svc.cluster.local", "port": 80, "domain": "x"}}],
        },
    }));
    kubernetes.apply(&json!({
        "apiVersion": "orlop.dev/v1alpha1", "kind": "ExtensionProvider", "metadata": metadata("authz"),
        "spec": {"envoyExtAuthzGrpc": {"service": "web.x.svc.cluster.local", "port": 80, "timeout": "1s"}},
    }));
    kubernetes.apply(&json!({
        "apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry", "metadata": metadata("web"),
        "spec": {
            "targetRefs": [{"kind": "Service", "group": "", "name": "web"}],
            "tracing": [{"randomSamplingPercentage": 5}],
            "accessLogging": [{"filter": {"expression": "response.code >= 400"}}],
        },
    }));
    let parents = json!([{"group": "", "kind": "Service", "name": "web"}]);
    for kind in ["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"] {
        kubernetes.apply(&json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": metadata("web"),
            "spec": {"parentRefs": parents, "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]},
        }));
    }
    kubernetes.apply(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": metadata("gate"),
        "spec": {
            "gatewayClassName": "somebody-s",
            "listeners": [{
                "name": "sealed", "port": 443, "protocol": "HTTPS", "hostname": "*.example",
                "tls": {"certificateRefs": [{"name": "cert"}]},
                "allowedRoutes": {"namespaces": {"from": "Selector", "selector": {"matchLabels": {"app": "web"}}}},
            }],
        },
    }));
    kubernetes.apply(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "ReferenceGrant", "metadata": metadata("web"),
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "far"}],
            "to": [{"group": "", "kind": "Service"}],
        },
    }));
    kubernetes.apply(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "BackendTLSPolicy", "metadata": metadata("web"),
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "web", "sectionName": "http"}],
            "validation": {
                "hostname": "web.example",
                "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}],
            },
        },
    }));
    // As a controller copies it, if one of another test's is there.
    for (name, key) in [("ca", "ca.crt"), ("orlop-backend-ca", "ca")] {
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(name), "data": {key: "no certificate"},
        }));
    }
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    // The controller's.
    kubernetes.wait(async {
        while kubernetes.get(&slices).await["items"][0]["endpoints"][0]["addresses"].is_null() {}
    });

    let testbed = Testbed::new().unwrap();
    let directory = testbed.dir().join("objects");
    fs::create_dir(&directory).unwrap();
    for (path, kind, version) in [
        (format!("/api/v1/namespaces/{namespace}/services"), "Service", "v1"),
        (format!("/api/v1/namespaces/{namespace}/pods"), "Pod", "v1"),
        (slices, "EndpointSlice", "discovery.k8s.io/v1"),
        (
            istio("security", &namespace, "authorizationpolicies"),
            "AuthorizationPolicy",
            "security.istio.io/v1",
        ),
        (istio("security", &namespace, "peerauthentications"), "PeerAuthentication", "security.istio.io/v1"),
        (
            istio("security", &namespace, "requestauthentications"),
            "RequestAuthentication",
            "security.istio.io/v1",
        ),
        (
            format!("/apis/orlop.dev/v1alpha1/namespaces/{namespace}/ratelimits"),
            "RateLimit",
            "orlop.dev/v1alpha1",
        ),
        (
            format!("/apis/orlop.dev/v1alpha1/namespaces/{namespace}/extensionproviders"),
            "ExtensionProvider",
            "orlop.dev/v1alpha1",
        ),
        (istio("telemetry", &namespace, "telemetries"), "Telemetry", "telemetry.istio.io/v1"),
        (istio("networking", &namespace, "serviceentries"), "ServiceEntry", "networking.istio.io/v1"),
        (istio("networking", &namespace, "workloadentries"), "WorkloadEntry", "networking.istio.io/v1"),
        (istio("networking", &namespace, "virtualservices"), "VirtualService", "networking.istio.io/v1"),
        (istio("networking", &namespace, "destinationrules"), "DestinationRule", "networking.istio.io/v1"),
        (gateway_api(&namespace, "httproutes"), "HTTPRoute", "gateway.networking.k8s.io/v1"),
        (gateway_api(&namespace, "grpcroutes"), "GRPCRoute", "gateway.networking.k8s.io/v1"),
        (gateway_api(&namespace, "tlsroutes"), "TLSRoute", "gateway.networking.k8s.io/v1"),
        (gateway_api(&namespace, "tcproutes"), "TCPRoute", "gateway.networking.k8s.io/v1"),
        (gateway_api(&namespace, "gateways"), "Gateway", "gateway.networking.k8s.io/v1"),
        (gateway_api(&namespace, "referencegrants"), "ReferenceGrant", "gateway.networking.k8s.io/v1"),
        (gateway_api(&namespace, "backendtlspolicies"), "BackendTLSPolicy", "gateway.networking.k8s.io/v1"),
        (
            format!("/api/v1/namespaces/{namespace}/configmaps?fieldSelector=metadata.name=orlop-backend-ca"),
            "ConfigMap",
            "v1",
        ),
        (format!("/api/v1/namespaces?fieldSelector=metadata.name={namespace}"), "Namespace", "v1"),
        (format!("/api/v1/nodes?fieldSelector=metadata.name={namespace}"), "Node", "v1"),
    ] {
        let mut list = kubernetes.wait(kubernetes.get(&path));
        assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{kind}");
        list["kind"] = format!("{kind}List").into();
        list["apiVersion"] = version.into();
        fs::write(directory.join(format!("{kind}.json")), list.to_string()).unwrap();
    }
    let from_directory = read_world(&directory).unwrap();
    assert_whole(&from_directory);

    let kubeconfig = kubernetes.plane.kubeconfig();
    let snapshot = |world: &World| serde_json::to_value(compile(world, &settings(), 1)).unwrap();
    // As the one that reads, a waypoint, the agent of its node and that of another node have it.
    for pods in [Pods::All, Pods::Live, Pods::OfNode(&namespace), Pods::OfNode("another")] {
        let opened = ClusterWorld::open(Some(&kubeconfig), Kinds::OfWaypoints, pods);
        let mut from_api = kubernetes.wait(opened).unwrap().world().clone();
        only(&mut from_api, &namespace);
        assert_eq!(from_api, from_directory, "{pods:?}");
        assert_eq!(snapshot(&from_api), snapshot(&from_directory), "{pods:?}");
    }
}

#[test]
fn of_other_nodes_those_pods_are_watched_that_have_an_address_and_run() {
    let kubernetes = Kubernetes::shared();
    let namespace = kubernetes.namespace("parts", &[]);
    let [here, there] = ["here", "there"].map(|node| format!("{namespace}-{node}"));
    let objects = Api::<PodObject>::namespaced(kubernetes.client.clone(), &namespace);
    let make = |name: &str, node: &str| {
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
            "spec": {"nodeName": node, "containers": [{"name": "web", "image": "web"}]},
        }));
    };
    let tell = |name: &str, status: Value| {
        let patch = Patch::Merge(json!({"status": status}));
        kubernetes.wait(objects.patch_status(name, &PatchParams::default(), &patch)).unwrap();
    };
    let address = |ip: &str| json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
    make("near", &here);
    make("far", &there);

    let kubeconfig = kubernetes.plane.kubeconfig();
    let opened = ClusterWorld::open(Some(&kubeconfig), Kinds::OfNodes, Pods::OfNode(&here));
    let mut worlds = kubernetes.wait(async { opened.await.unwrap().watch() });
    // Of each pod its node and phase.
    let mut await_pods = |wanted: &[(&str, &str, &str)]| {
        let has = |world: &World| {
            let of = world.pods.iter().filter(|(name, _)| name.namespace == *namespace);
            let found: Vec<_> = of
                .map(|(name, pod)| {
                    let node = pod.node.as_deref().unwrap_or_default().to_owned();
                    (name.name.to_string(), node, format!("{:?}", pod.phase))
                })
                .collect();
            let found: Vec<_> =
                found.iter().map(|(name, node, phase)| (&**name, &**node, &**phase)).collect();
            found == wanted
        };
        let waiting =
            async { tokio::time::timeout(TIMEOUT, worlds.wait_for(|world| has(world))).await.is_ok() };
        let met = kubernetes.wait(waiting);
        assert!(met, "not {wanted:?} but {:?}", worlds.borrow().pods);
    };
    // What has no address yet counts on its own node alone.
    await_pods(&[("near", &here, "Pending")]);
    tell("far", address("10.213.0.1"));
    await_pods(&[("far", &there, "Running"), ("near", &here, "Pending")]);
    tell("near", address("10.213.0.2"));
    await_pods(&[("far", &there, "Running"), ("near", &here, "Running")]);
    for name in ["far", "near"] {
        tell(name, json!({"phase": "Succeeded"}));
    }
    await_pods(&[("near", &here, "Succeeded")]);

    // A name that is used again on another node.
    for (node, ip) in [(&there, "10.213.0.3"), (&here, "10.213.0.4"), (&there, "10.213.0.5")] {
        let at_once = DeleteParams::default().grace_period(0);
        kubernetes.wait(objects.delete("near", &at_once)).unwrap();
        make("near", node);
        tell("near", address(ip));
        await_pods(&[("near", node, "Running")]);
    }
    kubernetes.wait(objects.delete("near", &DeleteParams::default().grace_period(0))).unwrap();
    await_pods(&[]);
}

#[test]
fn a_policy_that_makes_no_sense_lets_nothing_pass_and_is_named() {
    let kubernetes = Kubernetes::shared();
    kubernetes.define_istio();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("malformed", &[("orlop.dev/mesh", "enabled")]);
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let pods = ["client", "server"].map(|name| node.run(&namespace, name, &[("app", name)]));
    let agent = node.agent(&[]);
    agent.wait_enrolled(&pods).unwrap();
    let _http = pods[1].serve_http(8080).unwrap();
    let answers = || pods[0].http_get(pods[1].addr(8080), "/", TIMEOUT).is_ok();
    assert!(answers());
    let policy = |spec: Value| {
        kubernetes.apply(&json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "odd", "namespace": namespace}, "spec": spec,
        }));
    };
    policy(json!({"selector": {"matchLabels": {"app": "server"}}, "rules": [{"whom": "nobody"}]}));
    let named = format!("AuthorizationPolicy {namespace}/odd: spec.rules[0]");
    agent.wait_log(|log| log.contains(&named), TIMEOUT).unwrap();
    assert!(orlop_tests::wait_for(TIMEOUT, || !answers()), "{}", agent.log().unwrap());
    policy(json!({"selector": {"matchLabels": {"app": "server"}}, "rules": [{}]}));
    assert!(orlop_tests::wait_for(TIMEOUT, answers), "{}", agent.log().unwrap());
    // It was good once: that stays.
    policy(json!({"selector": {"matchLabels": {"app": "server"}}, "rules": [{}], "when": "never"}));
    agent.wait_log(|log| log.contains("what it was before stays in force"), TIMEOUT).unwrap();
    assert!(answers());
}

fn istio(group: &str, namespace: &str, plural: &str) -> String {
    format!("/apis/{group}.istio.io/v1/namespaces/{namespace}/{plural}")
}

fn gateway_api(namespace: &str, plural: &str) -> String {
    format!("/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/{plural}")
}

/// Leaves what is of one namespace, and the node of its name.
fn only(world: &mut World, namespace: &str) {
    let World {
        as_of: _,
        namespaces,
        nodes,
        pods,
        services,
        endpoint_slices,
        service_entries,
        workload_entries,
        authorization_policies,
        peer_authentications,
        virtual_services,
        destination_rules,
        request_authentications,
        extension_providers,
        rate_limits,
        gateways,
        telemetries,
        http_routes,
        grpc_routes,
        tls_routes,
        tcp_routes,
        reference_grants,
        backend_tls,
        config_maps,
    } = world;
    namespaces.retain(|name, _| name == namespace);
    nodes.retain(|name, _| name == namespace);
    pods.retain(|name, _| name.namespace == namespace);
    services.retain(|name, _| name.namespace == namespace);
    endpoint_slices.retain(|name, _| name.namespace == namespace);
    service_entries.retain(|name, _| name.namespace == namespace);
    workload_entries.retain(|name, _| name.namespace == namespace);
    authorization_policies.retain(|name, _| name.namespace == namespace);
    peer_authentications.retain(|name, _| name.namespace == namespace);
    virtual_services.retain(|name, _| name.namespace == namespace);
    destination_rules.retain(|name, _| name.namespace == namespace);
    request_authentications.retain(|name, _| name.namespace == namespace);
    extension_providers.retain(|name, _| name.namespace == namespace);
    rate_limits.retain(|name, _| name.namespace == namespace);
    gateways.retain(|name, _| name.namespace == namespace);
    telemetries.retain(|name, _| name.namespace == namespace);
    http_routes.retain(|name, _| name.namespace == namespace);
    grpc_routes.retain(|name, _| name.namespace == namespace);
    tls_routes.retain(|name, _| name.namespace == namespace);
    tcp_routes.retain(|name, _| name.namespace == namespace);
    reference_grants.retain(|name, _| name.namespace == namespace);
    backend_tls.retain(|name, _| name.namespace == namespace);
    config_maps.retain(|name, _| name.namespace == namespace);
}

/// Whether there is one object of each kind. A kind that is new is missing here first.
fn assert_whole(world: &World) {
    let World {
        as_of: _,
        namespaces,
        nodes,
        pods,
        services,
        endpoint_slices,
        service_entries,
        workload_entries,
        authorization_policies,
        peer_authentications,
        virtual_services,
        destination_rules,
        request_authentications,
        extension_providers,
        rate_limits,
        gateways,
        telemetries,
        http_routes,
        grpc_routes,
        tls_routes,
        tcp_routes,
        reference_grants,
        backend_tls,
        config_maps,
    } = world;
    for (kind, count) in [
        ("namespaces", namespaces.len()),
        ("nodes", nodes.len()),
        ("pods", pods.len()),
        ("services", services.len()),
        ("endpoint_slices", endpoint_slices.len()),
        ("service_entries", service_entries.len()),
        ("workload_entries", workload_entries.len()),
        ("authorization_policies", authorization_policies.len()),
        ("peer_authentications", peer_authentications.len()),
        ("virtual_services", virtual_services.len()),
        ("destination_rules", destination_rules.len()),
        ("request_authentications", request_authentications.len()),
        ("extension_providers", extension_providers.len()),
        ("rate_limits", rate_limits.len()),
        ("gateways", gateways.len()),
        ("telemetries", telemetries.len()),
        ("http_routes", http_routes.len()),
        ("grpc_routes", grpc_routes.len()),
        ("tls_routes", tls_routes.len()),
        ("tcp_routes", tcp_routes.len()),
        ("reference_grants", reference_grants.len()),
        ("backend_tls", backend_tls.len()),
        ("config_maps", config_maps.len()),
    ] {
        assert_eq!(count, 1, "{kind}");
    }
}

fn settings() -> Settings {
    Settings {
        node: "n1".to_owned(),
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
        cluster: "Kubernetes".to_owned(),
        network: None,
        cluster_domain: "cluster.local".to_owned(),
    }
}
