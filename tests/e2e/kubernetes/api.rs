//! The Kubernetes API for tests.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config, Resource};
use orlop_tests::{ControlPlane, Node, published_definitions};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

/// For whatever a control plane on a busy machine should do at once.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A control plane and a client that may do everything.
pub struct Kubernetes {
    pub client: Client,
    runtime: Runtime,
    pub plane: Plane,
}

/// The schema of what may be anything.
pub fn anything() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// A control plane that a test may share with others, or that is its own.
pub enum Plane {
    Shared(&'static ControlPlane),
    Own(Box<ControlPlane>),
}

impl Deref for Plane {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        match self {
            Self::Shared(plane) => plane,
            Self::Own(plane) => plane,
        }
    }
}

/// Writes a file in one step: a process that was started with it may be reading it.
fn put(path: &Path, content: &str) {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let new = path.with_added_extension(format!("new-{number}"));
    fs::write(&new, content).unwrap();
    fs::rename(new, path).unwrap();
}

impl Kubernetes {
    /// The one that all tests share.
    pub fn shared() -> Self {
        Self::of(Plane::Shared(ControlPlane::shared().unwrap()))
    }

    /// One for a test that changes what others rely on.
    pub fn own() -> Self {
        Self::of(Plane::Own(Box::new(ControlPlane::start().unwrap())))
    }

    /// One for nodes, on one of them.
    pub fn on(node: &Node) -> Self {
        Self::of(Plane::Own(Box::new(ControlPlane::start_on(node).unwrap())))
    }

    fn of(plane: Plane) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(client(&plane.kubeconfig()));
        Self { client, runtime, plane }
    }

    /// Waits for an answer of the API.
    #[track_caller]
    pub fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        self.runtime
            .block_on(async { timeout(TIMEOUT, answer).await.expect("no answer of the Kubernetes API") })
    }

    /// Makes a namespace that no other test has, and waits until pods can be made in it. Gives its name.
    pub fn namespace(&self, prefix: &str, labels: &[(&str, &str)]) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let labels: serde_json::Map<_, _> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        let object = json!({"metadata": {"name": name, "labels": labels}});
        let object: Namespace = serde_json::from_value(object).unwrap();
        self.wait(async {
            Api::all(self.client.clone()).create(&PostParams::default(), &object).await.unwrap();
            let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), &name);
            while accounts.get_opt("default").await.unwrap().is_none() {
                sleep(Duration::from_millis(10)).await;
            }
        });
        name
    }

    /// Server-side apply of any object, with its status if it has a subresource for that.
    #[track_caller]
    pub fn apply(&self, object: &Value) {
        self.try_apply(object).unwrap();
    }

    /// The same, of what the API server may refuse.
    pub fn try_apply(&self, object: &Value) -> kube::Result<()> {
        self.wait(apply(&self.client, object))
    }

    /// What the API answers.
    pub async fn get(&self, path: &str) -> Value {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        self.client.request(request).await.unwrap()
    }

    /// What the API says about whether somebody may do something, asked as a SubjectAccessReview.
    pub async fn review(&self, review: &Value) -> Value {
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let request = http::Request::post(path).body(review.to_string().into_bytes()).unwrap();
        self.client.request(request).await.unwrap()
    }

    /// Makes the kinds of Istio and the Gateway API that Orlop reads, without a schema: an API server takes anything as
    /// one. They have a status. And those of Orlop's own.
    pub fn define_istio(&self) {
        for (group, kind, plural) in [
            ("security.istio.io", "AuthorizationPolicy", "authorizationpolicies"),
            ("security.istio.io", "PeerAuthentication", "peerauthentications"),
            ("security.istio.io", "RequestAuthentication", "requestauthentications"),
            ("networking.istio.io", "ServiceEntry", "serviceentries"),
            ("networking.istio.io", "WorkloadEntry", "workloadentries"),
            ("networking.istio.io", "VirtualService", "virtualservices"),
            ("networking.istio.io", "DestinationRule", "destinationrules"),
            ("telemetry.istio.io", "Telemetry", "telemetries"),
            ("gateway.networking.k8s.io", "HTTPRoute", "httproutes"),
            ("gateway.networking.k8s.io", "GRPCRoute", "grpcroutes"),
            ("gateway.networking.k8s.io", "TLSRoute", "tlsroutes"),
            ("gateway.networking.k8s.io", "TCPRoute", "tcproutes"),
            ("gateway.networking.k8s.io", "ReferenceGrant", "referencegrants"),
            ("gateway.networking.k8s.io", "BackendTLSPolicy", "backendtlspolicies"),
        ] {
            self.define(group, kind, plural, &json!({"status": {}}), &anything());
        }
        self.define_own();
    }

    /// Makes Orlop's own kinds, as `deploy/crds` has them.
    pub fn define_own(&self) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
        let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let is_own = |path: &Path| path.file_name().unwrap().to_str().unwrap().starts_with("orlop.dev_");
        self.define_all(files.filter(|path| is_own(path)), |_| true);
    }

    /// Makes kinds of Istio and the Gateway API, each a group and its kind, as their projects define them.
    pub fn define_published(&self, kinds: &[(&str, &str)]) {
        self.define_all(published_definitions().unwrap().into_iter(), |definition| {
            let spec = &definition["spec"];
            kinds.iter().any(|(group, kind)| spec["group"] == *group && spec["names"]["kind"] == *kind)
        });
    }

    fn define_all(&self, files: impl Iterator<Item = PathBuf>, is_wanted: impl Fn(&Value) -> bool) {
        for path in files {
            let text = fs::read_to_string(path).unwrap();
            let definitions = serde_saphyr::from_multiple::<Value>(&text).unwrap();
            for definition in definitions.iter().filter(|definition| is_wanted(definition)) {
                self.apply(definition);
                let spec = &definition["spec"];
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                let version = text(&spec["versions"][0]["name"]);
                let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
                self.wait_served(&format!("/apis/{group}/{version}/{plural}?limit=1"));
            }
        }
    }

    /// Makes a kind, and waits until there can be objects of it.
    pub fn define(&self, group: &str, kind: &str, plural: &str, subresources: &Value, schema: &Value) {
        let name = format!("{plural}.{group}");
        self.apply(&json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            // Without it the API server takes none of Kubernetes' own groups.
            "metadata": {"name": name, "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"}},
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
                "versions": [{
                    "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                    "subresources": subresources,
                }],
            },
        }));
        self.wait_served(&format!("/apis/{group}/v1/{plural}?limit=1"));
    }

    /// Waits until the API serves a kind.
    pub fn wait_served(&self, path: &str) {
        self.wait(async {
            let request = || http::Request::get(path).body(Vec::new()).unwrap();
            // As text: what is there may be nested deeper than a `Value` can be.
            while self.client.request_text(request()).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        });
    }

    /// A client with a token of a service account, made as kubelet asks for it.
    pub fn client_of(&self, namespace: &str, account: &str) -> Client {
        let token = self.token(namespace, account);
        let authority = self.plane.authority().unwrap();
        let url = format!("https://{}", self.plane.address());
        self.wait(async {
            let mut config = Config::new(url.parse().unwrap());
            config.root_cert = Some(vec![pem::parse(authority).unwrap().into_contents()]);
            config.auth_info.token = Some(token.into());
            Client::try_from(config).unwrap()
        })
    }

    /// A kubeconfig in `directory` for a service account, which finds the API server at `address`.
    pub fn kubeconfig(&self, directory: &Path, namespace: &str, account: &str, address: &str) -> PathBuf {
        fs::create_dir_all(directory).unwrap();
        let authority = directory.join("cluster-ca.crt");
        put(&authority, &self.plane.authority().unwrap());
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": account}}],
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{address}"), "certificate-authority": authority,
            }}],
            "users": [{"name": account, "user": {"token": self.token(namespace, account)}}],
        });
        let path = directory.join(format!("{account}.kubeconfig"));
        put(&path, &config.to_string());
        path
    }

    /// A token of a service account, for the API server.
    pub fn token(&self, namespace: &str, account: &str) -> String {
        self.request_token(namespace, account, TokenRequestSpec::default())
    }

    /// A token for somebody else, bound to a pod, as kubelet asks for it.
    pub fn bound_token(&self, namespace: &str, account: &str, pod: &str, audience: &str) -> String {
        self.lasting_token(namespace, account, pod, audience, 3600)
    }

    /// The same, good for so many seconds.
    pub fn lasting_token(
        &self,
        namespace: &str,
        account: &str,
        pod: &str,
        audience: &str,
        seconds: i64,
    ) -> String {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let bound = BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.to_owned()),
            uid: self.wait(pods.get(pod)).unwrap().metadata.uid,
        };
        let audiences = vec![audience.to_owned()];
        let (bound_object_ref, expiration_seconds) = (Some(bound), Some(seconds));
        let spec = TokenRequestSpec { audiences, bound_object_ref, expiration_seconds };
        self.request_token(namespace, account, spec)
    }

    fn request_token(&self, namespace: &str, account: &str, spec: TokenRequestSpec) -> String {
        let expiration_seconds = spec.expiration_seconds.or(Some(3600));
        let spec = TokenRequestSpec { expiration_seconds, ..spec };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        let made = self.wait(accounts.create_token_request(account, &PostParams::default(), &request));
        made.unwrap().status.unwrap().token
    }
}

/// Whether an API server answers whoever has this kubeconfig.
pub fn serves(kubeconfig: &Path) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let namespaces = Api::<Namespace>::all(client(kubeconfig).await);
        timeout(TIMEOUT, namespaces.get("default")).await.is_ok_and(|answer| answer.is_ok())
    })
}

async fn client(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

async fn apply(client: &Client, object: &Value) -> kube::Result<()> {
    let object: DynamicObject = serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
    let types = object.types.clone().unwrap_or_default();
    let kind = GroupVersionKind::try_from(&types).unwrap();
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = match &object.meta().namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let name = object.meta().name.clone().unwrap_or_default();
    let parameters = PatchParams::apply("tests").force();
    api.patch(&name, &parameters, &Patch::Apply(&object)).await?;
    if object.data.get("status").is_some() {
        api.patch_status(&name, &parameters, &Patch::Apply(&object)).await?;
    }
    Ok(())
}
