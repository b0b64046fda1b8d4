//! kubelet's side of the boot gate: it finds the driver in its plugin registry, and asks it before it makes a
//! sandbox.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use orlop_tests::protobuf::field;
use orlop_tests::{AgentOptions, Node, Pod, PodCgroups, Testbed, wait_for};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::mesh::TIMEOUT;

/// The driver's name.
pub const DRIVER: &str = "gate.orlop.dev";

pub struct Kubelet {
    pub node: Node,
    pub cgroups: PodCgroups,
    /// `--root-dir`.
    pub directory: PathBuf,
    runtime: tokio::runtime::Runtime,
}

/// `grpc-status` and `grpc-message`, or the bytes of the answer.
pub type Answer = Result<Vec<u8>, (u32, String)>;

/// Of gRPC.
pub const INVALID_ARGUMENT: u32 = 3;
pub const RESOURCE_EXHAUSTED: u32 = 8;
pub const OUT_OF_RANGE: u32 = 11;
pub const UNIMPLEMENTED: u32 = 12;
pub const UNAVAILABLE: u32 = 14;

impl Kubelet {
    pub fn new(testbed: &Testbed, node: &Node) -> Self {
        let directory = testbed.dir().join(format!("k-{}", &node.name()[..2]));
        for part in ["plugins", "plugins_registry", "pods"] {
            fs::create_dir_all(directory.join(part)).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { node: node.clone(), cgroups: PodCgroups::default(), directory, runtime }
    }

    /// How to start the node's agent so that it knows this kubelet.
    pub fn options(&self) -> AgentOptions {
        let pods = self.node.pods_cgroup(self.cgroups).unwrap();
        let args = [
            "--log-format",
            "json",
            "--boot-gate",
            "--kubelet-dir",
            &self.directory.to_string_lossy(),
            "--pods-cgroup",
            &pods.to_string_lossy(),
        ];
        AgentOptions { args: args.map(str::to_owned).into(), ..AgentOptions::default() }
    }

    /// A pod, from its cgroup on: first the driver is asked, and then the sandbox made.
    pub fn run(&self, namespace: &str, name: &str, uid: &str) -> Pod {
        self.cgroup(uid);
        self.publish(uid).unwrap();
        self.sandbox(namespace, name, uid)
    }

    /// Makes the pod's cgroup, with nothing in it.
    pub fn cgroup(&self, uid: &str) -> PathBuf {
        self.node.pod_cgroup(self.cgroups, uid).unwrap()
    }

    /// Makes the pod's sandbox, with nothing asked.
    pub fn sandbox(&self, namespace: &str, name: &str, uid: &str) -> Pod {
        self.node.pod_as_kubelet(namespace, name, uid, self.cgroups).unwrap()
    }

    /// Where the driver listens, as it says at its socket in the registry.
    pub fn endpoint(&self) -> PathBuf {
        let socket = self.directory.join("plugins_registry").join(format!("{DRIVER}@reg.sock"));
        assert!(wait_for(TIMEOUT, || socket.exists()), "no driver registers");
        let info = self.call(&socket, "pluginregistration.Registration/GetInfo", &[]).unwrap();
        let endpoint = self.directory.join("plugins").join(DRIVER).join("csi.sock");
        let wanted = [
            field(1, b"CSIPlugin"),
            field(2, DRIVER.as_bytes()),
            field(3, endpoint.to_str().unwrap().as_bytes()),
            field(4, b"1.0.0"),
        ];
        assert_eq!(String::from_utf8_lossy(&info), String::from_utf8_lossy(&wanted.concat()));
        let registered = [0x08, 1];
        self.call(&socket, "pluginregistration.Registration/NotifyRegistrationStatus", &registered).unwrap();
        for path in [&socket, &endpoint] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
        }
        endpoint
    }

    /// Where kubelet wants the volume of a pod.
    pub fn target(&self, uid: &str) -> PathBuf {
        self.directory.join("pods").join(uid).join("volumes/kubernetes.io~csi/orlop-gate/mount")
    }

    /// Asks the driver for the volume that the admission policy gives a pod.
    pub fn publish(&self, uid: &str) -> Answer {
        let target = self.target(uid);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let request = publish_request(target.to_str().unwrap(), uid);
        self.csi("Node/NodePublishVolume", &request)
    }

    /// Has the driver take it back.
    pub fn unpublish(&self, uid: &str) -> Answer {
        let target = self.target(uid);
        let request = [field(1, b"csi-1"), field(2, target.to_str().unwrap().as_bytes())].concat();
        self.csi("Node/NodeUnpublishVolume", &request)
    }

    /// Any call of the driver.
    pub fn csi(&self, method: &str, message: &[u8]) -> Answer {
        let endpoint = self.directory.join("plugins").join(DRIVER).join("csi.sock");
        self.call(&endpoint, &format!("csi.v1.{method}"), message)
    }

    fn call(&self, socket: &Path, method: &str, message: &[u8]) -> Answer {
        // Of the registry kubelet makes the path the authority.
        let registers = method.starts_with("pluginregistration.");
        let authority = if registers { escaped(socket) } else { "localhost".to_owned() };
        let call = call(socket, &authority, method, message);
        self.runtime
            .block_on(async { timeout(Duration::from_secs(60), call).await })
            .expect("no answer")
            .unwrap_or_else(|error| Err((UNAVAILABLE, error)))
    }
}

/// `NodePublishVolumeRequest` as kubelet writes it.
pub fn publish_request(target: &str, uid: &str) -> Vec<u8> {
    let entry =
        |key: &str, value: &str| field(8, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
    let read_only = vec![0x30, 1];
    [
        field(1, b"csi-1"),
        field(4, target.as_bytes()),
        // A mount, by one node.
        field(5, &[field(2, b""), field(3, &[0x08, 1])].concat()),
        read_only,
        entry("csi.storage.k8s.io/pod.uid", uid),
        entry("csi.storage.k8s.io/pod.name", "web"),
        entry("csi.storage.k8s.io/pod.namespace", "shop"),
        entry("csi.storage.k8s.io/ephemeral", "true"),
    ]
    .concat()
}

/// What grpc-go makes an authority of.
fn escaped(path: &Path) -> String {
    let path = path.to_str().unwrap();
    let is_kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]@".contains(&byte);
    let escape = |byte: u8| if is_kept(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    path.bytes().map(escape).collect()
}

/// One gRPC call on a connection of its own, as kubelet makes it.
async fn call(socket: &Path, authority: &str, method: &str, message: &[u8]) -> Result<Answer, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let stream = UnixStream::connect(socket).await.map_err(|error| text(&error))?;
    let (client, connection) = h2::client::handshake(stream).await.map_err(|error| text(&error))?;
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.map_err(|error| text(&error))?;
    let request = http::Request::post(format!("http://{authority}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut body) = client.send_request(request, false).map_err(|error| text(&error))?;
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    // It may have been refused already.
    let _ = body.send_data(Bytes::from(frame), true);
    let (head, mut body) = response.await.map_err(|error| text(&error))?.into_parts();
    let mut answer = Vec::new();
    while let Some(data) = body.data().await {
        answer.extend_from_slice(&data.map_err(|error| text(&error))?);
    }
    let trailers = body.trailers().await.map_err(|error| text(&error))?.unwrap_or_default();
    connection.abort();
    let value = |name: &str| {
        let value = trailers.get(name).or_else(|| head.headers.get(name));
        value.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    match value("grpc-status").parse() {
        Ok(0) => Ok(Ok(answer.split_off(5))),
        Ok(status) => Ok(Err((status, value("grpc-message").replace("%20", " ")))),
        Err(_) => Err(format!("no status: {head:?} {trailers:?}")),
    }
}
