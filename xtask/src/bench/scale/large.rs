use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::Result;
use orlop_tests::World;

/// Of each service.
pub(crate) const ENDPOINTS: usize = 10;
/// Services of one namespace.
const NEIGHBOURS: usize = 10;
/// Workloads of one node.
const ON_A_NODE: usize = 50;

/// Fills a world with so many services, a file each, in namespaces with these labels, and what goes with them.
pub(crate) fn fill(world: &World, services: usize, labels: &[(&str, &str)]) -> Result<()> {
    for namespace in 0..services.div_ceil(NEIGHBOURS) {
        world.namespace(&format!("team-{namespace}"), labels)?;
        world.write(&format!("policy.{namespace}.yaml"), &policy(namespace))?;
    }
    let nodes: Vec<String> = (0..(services * ENDPOINTS).div_ceil(ON_A_NODE)).map(node).collect();
    world.write("nodes.yaml", &nodes.concat())?;
    for service in 0..services {
        world.write(&format!("service.{service}.yaml"), &text_of(service))?;
    }
    Ok(())
}

/// The namespace of a service.
pub(crate) fn namespace_of(service: usize) -> String {
    format!("team-{}", service / NEIGHBOURS)
}

/// A service with its slice and its pods.
fn text_of(service: usize) -> String {
    let namespace = service / NEIGHBOURS;
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: service-{service}, namespace: team-{namespace}}}\n\
         spec:\n  clusterIP: {}\n  selector: {{app: service-{service}}}\n  ports:\n  - {{name: http, port: 80, \
         targetPort: 8080}}\n",
        address([198, 18, 0, 0], service)
    );
    let _ = write!(
        text,
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: service-{service}-abcde\n  \
         namespace: team-{namespace}\n  labels: {{kubernetes.io/service-name: service-{service}}}\n\
         addressType: IPv4\nports:\n- {{name: http, port: 8080, protocol: TCP}}\nendpoints:\n"
    );
    let pods = || (service * ENDPOINTS..(service + 1) * ENDPOINTS).map(|pod| (pod, name_of(service, pod)));
    for (pod, name) in pods() {
        let _ = writeln!(
            text,
            "- addresses: [{}]\n  conditions: {{ready: true, serving: true, terminating: false}}\n  \
             nodeName: node-{}\n  targetRef: {{kind: Pod, namespace: team-{namespace}, name: {name}}}",
            address([100, 64, 0, 0], pod),
            pod / ON_A_NODE
        );
    }
    for (pod, name) in pods() {
        let address = address([100, 64, 0, 0], pod);
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: team-{namespace}\n  \
             uid: 7c9e6679-7425-40de-944b-{pod:012}\n  labels: {{app: service-{service}, version: v1, \
             pod-template-hash: 5d4f8c7b9}}\n  ownerReferences:\n  - {{apiVersion: apps/v1, kind: ReplicaSet, \
             name: service-{service}-5d4f8c7b9, uid: r-{service}, controller: true}}\nspec:\n  \
             nodeName: node-{}\n  serviceAccountName: service-{service}\n  containers:\n  - name: app\n    \
             image: none\n    ports:\n    - {{name: http, containerPort: 8080}}\nstatus:\n  phase: Running\n  \
             conditions:\n  - {{type: Ready, status: \"True\"}}\n  podIP: {address}\n  podIPs:\n  \
             - {{ip: {address}}}\n",
            pod / ON_A_NODE
        );
    }
    text
}

/// As a ReplicaSet names its pods.
fn name_of(service: usize, pod: usize) -> String {
    format!("service-{service}-5d4f8c7b9-{pod:05x}")
}

/// Its services call each other.
fn policy(namespace: usize) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: own, namespace: \
         team-{namespace}}}\nspec:\n  rules:\n  - from:\n    - source: {{namespaces: [team-{namespace}]}}\n"
    )
}

fn node(node: usize) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: node-{node}\n  labels:\n    \
         topology.kubernetes.io/region: r1\n    topology.kubernetes.io/zone: z{}\n",
        node % 3
    )
}

fn address(base: [u8; 4], offset: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be_bytes(base) + 1 + u32::try_from(offset).unwrap_or_default())
}
