//! A cluster of two nodes, and Orlop's image on them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use nix::unistd::Pid;
use orlop_tests::{ADMIN_PORT, BUSYBOX, DeployTools, Image, KubeNode, Testbed, binary, traffic, wait_for};
use serde_json::{Value, json};

use crate::kubernetes::api::Kubernetes;
use crate::kubernetes::install::SYSTEM;
use crate::readme::{install_commands, root};

/// For anything that kubelet does after a pause, on a machine that is busy with other things.
pub const LONG: Duration = Duration::from_secs(120);
/// Names the image of `cargo xtask image`, which is then what is installed.
const IMAGE: &str = "ORLOP_IMAGE";
/// What the image is called in values of the chart.
const REPOSITORY: &str = "orlop.test/orlop";

/// Two nodes without Orlop. What is dropped first comes first.
pub struct Cluster {
    pub nodes: [KubeNode; 2],
    pub kubernetes: Kubernetes,
    tools: DeployTools,
    pub testbed: Testbed,
}

impl Cluster {
    pub fn start() -> Self {
        let testbed = Testbed::new().unwrap();
        let nodes = ["n1", "n2"].map(|name| testbed.node(name).unwrap());
        let kubernetes = Kubernetes::on(&nodes[0]);
        let image = testbed.dir().join("orlop-image");
        match std::env::var_os(IMAGE) {
            Some(made) => drop(run(Command::new("cp").arg("-r").arg(made).arg(&image))),
            None => write_image(&image),
        }
        let (plane, layout) = (&kubernetes.plane, &image);
        let nodes = std::thread::scope(|scope| {
            let started = nodes.each_ref().map(|node| {
                scope.spawn(move || {
                    let node = KubeNode::start(node, plane).unwrap();
                    node.load(layout, REPOSITORY).unwrap();
                    node
                })
            });
            started.map(|node| node.join().unwrap())
        });
        fs::remove_dir_all(image).unwrap();
        Self { nodes, kubernetes, tools: DeployTools::find().unwrap(), testbed }
    }

    /// `helm`, which must do well. Gives what it printed.
    #[track_caller]
    pub fn helm(&self, args: &[&str]) -> String {
        let mut helm = self.tools.helm();
        helm.args(args).args(["--namespace", SYSTEM]);
        run(helm.arg("--kubeconfig").arg(self.kubernetes.plane.kubeconfig()))
    }

    /// Installs the chart by the README's very command, with more arguments.
    pub fn install(&self, args: &[&str]) {
        let [install, _] = install_commands();
        assert!(install.contains("REPOSITORY") && install.contains(SYSTEM), "{install}");
        self.type_in(&format!("{} {}", install.replace("REPOSITORY", REPOSITORY), args.join(" ")));
    }

    /// Takes a namespace into the mesh by the README's very command.
    pub fn label(&self, namespace: &str) {
        let [_, label] = install_commands();
        assert!(label.contains("NAMESPACE"), "{label}");
        self.type_in(&label.replace("NAMESPACE", namespace));
    }

    /// Runs a line as somebody would who is in the repository and has a kubeconfig.
    #[track_caller]
    fn type_in(&self, line: &str) {
        let mut shell = self.tools.shell(line);
        run(shell.env("KUBECONFIG", self.kubernetes.plane.kubeconfig()).current_dir(root()));
    }

    /// `kubectl`, which must do well. Gives what it printed.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        run(self.tools.kubectl(&self.kubernetes.plane.kubeconfig()).args(args))
    }

    /// `kubectl`, which may fail.
    pub fn try_kubectl(&self, args: &[&str]) -> Output {
        self.tools.kubectl(&self.kubernetes.plane.kubeconfig()).args(args).output().unwrap()
    }

    /// `kubectl wait` for a condition, and what there is if it does not come.
    #[track_caller]
    pub fn wait(&self, what: &str, args: &[&str]) {
        let timeout = format!("--timeout={}s", LONG.as_secs());
        let mut kubectl = self.tools.kubectl(&self.kubernetes.plane.kubeconfig());
        let output = kubectl.arg("wait").arg(what).args(args).arg(timeout).output().unwrap();
        if !output.status.success() {
            panic!("{}{}", String::from_utf8_lossy(&output.stderr), self.state());
        }
    }

    /// Waits until every pod of a Deployment or DaemonSet of ours is of its newest template.
    #[track_caller]
    pub fn wait_rollout(&self, what: &str) {
        let mut kubectl = self.tools.kubectl(&self.kubernetes.plane.kubeconfig());
        kubectl.args(["rollout", "status", what, "--namespace", SYSTEM, "--timeout=120s"]);
        let output = kubectl.output().unwrap();
        if !output.status.success() {
            panic!("{}{}", String::from_utf8_lossy(&output.stderr), self.state());
        }
    }

    /// Everything worth reading when something does not come about.
    pub fn state(&self) -> String {
        let mut state = self.kubectl(&["get", "pods", "--all-namespaces", "--output=wide"]);
        state += &self.kubectl(&["get", "events", "--all-namespaces"]);
        let logs = ["logs", "--namespace", SYSTEM, "--selector=app.kubernetes.io/part-of=orlop", "--prefix"];
        let output = self.tools.kubectl(&self.kubernetes.plane.kubeconfig()).args(logs).output().unwrap();
        state += &String::from_utf8_lossy(&output.stdout);
        // Of a container that has ended, and was started anew.
        for pod in self.kubectl(&["get", "pods", "--namespace", SYSTEM, "--output=name"]).lines() {
            let before = ["logs", pod, "--namespace", SYSTEM, "--previous", "--ignore-errors"];
            let output =
                self.tools.kubectl(&self.kubernetes.plane.kubeconfig()).args(before).output().unwrap();
            state += &format!("-- {pod}, before\n{}", String::from_utf8_lossy(&output.stdout));
        }
        self.nodes.iter().for_each(|node| state += &node.log_tails());
        state
    }

    /// Makes a namespace with a pod that serves HTTP and an echo on node 2, and one that can dial on node 1, and waits
    /// until they run.
    pub fn shop(&self, namespace: &str, labels: &Value) {
        self.kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels},
        }));
        for account in ["client", "server"] {
            self.kubernetes.apply(&json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": account, "namespace": namespace},
            }));
        }
        self.pod(namespace, "client", &json!({"nodeName": self.nodes[0].node().name()}), &json!({}));
        self.server(namespace, "server");
        for pod in ["pod/client", "pod/server"] {
            self.wait(pod, &["--for=condition=Ready", "--namespace", namespace]);
        }
    }

    /// Makes a server on node 2 which kubelet asks whether it is ready and lives.
    pub fn server(&self, namespace: &str, name: &str) {
        let probe = json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1});
        let serve = "echo served >/index.html; /bin/busybox nc -ll -p 7 -e /bin/busybox cat & \
                     exec /bin/busybox httpd -f -p 8080 -h /";
        self.pod(
            namespace,
            name,
            &json!({"nodeName": self.nodes[1].node().name(), "serviceAccountName": "server"}),
            &json!({
                "command": ["/bin/busybox", "sh", "-c", serve],
                "readinessProbe": probe, "livenessProbe": probe,
            }),
        );
    }

    /// Makes a pod, with more in its spec and in its container.
    pub fn pod(&self, namespace: &str, name: &str, spec: &Value, container: &Value) {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "serviceAccountName": name, "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "app", "image": BUSYBOX, "command": ["/bin/busybox", "sleep", "2147483647"]}],
            },
        });
        for (key, value) in spec.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        for (key, value) in container.as_object().unwrap() {
            pod["spec"]["containers"][0][key] = value.clone();
        }
        self.kubernetes.apply(&pod);
    }

    /// A pod's address.
    pub fn address(&self, namespace: &str, pod: &str) -> String {
        self.kubectl(&["get", "pod", pod, "--namespace", namespace, "--output=jsonpath={.status.podIP}"])
    }

    /// Runs a line of shell in a pod. Gives what it printed, whatever became of it.
    pub fn shell(&self, namespace: &str, pod: &str, line: &str) -> String {
        let mut kubectl = self.tools.kubectl(&self.kubernetes.plane.kubeconfig());
        kubectl.args(["exec", pod, "--namespace", namespace, "--", "/bin/busybox", "sh", "-c", line]);
        let output = kubectl.output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Whether a pod gets an answer to `GET /` from a server.
    pub fn gets(&self, namespace: &str, pod: &str, address: &str) -> bool {
        let line = format!(
            "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /bin/busybox timeout 5 /bin/busybox nc {address} 8080"
        );
        self.shell(namespace, pod, &line).contains("served")
    }

    /// The same, once it is so or isn't.
    #[track_caller]
    pub fn wait_gets(&self, namespace: &str, pod: &str, address: &str, wanted: bool) {
        if !wait_for(LONG, || self.gets(namespace, pod, address) == wanted) {
            panic!("{namespace}/{pod} to {address}: {wanted} was wanted\n{}", self.state());
        }
    }

    /// The connections that ended on a node; none while no agent answers.
    pub fn flows(&self, node: usize) -> Vec<Value> {
        let binary = binary().unwrap();
        let mut orlop = self.nodes[node].node().command(binary.to_str().unwrap()).unwrap();
        let output = orlop.arg("flows").output().unwrap();
        let flows = String::from_utf8(output.stdout).unwrap();
        flows.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What a node's agent says of itself; nothing while none answers.
    pub fn config_dump(&self, node: usize) -> Value {
        let get = || {
            let stream = traffic::connect(([127, 0, 0, 1], ADMIN_PORT).into(), LONG)?;
            traffic::get(stream, "localhost", "/config_dump")
        };
        let dump = self.nodes[node].node().run(get).unwrap();
        dump.ok().and_then(|dump| serde_json::from_str(&dump.text()).ok()).unwrap_or_default()
    }

    /// The process of a node's agent: it is on the node's own network.
    pub fn agent(&self, node: usize) -> Pid {
        let netns = fs::metadata(self.nodes[node].node().netns_path()).unwrap().ino();
        let is_agent = |process: &Path| {
            let arguments = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
            let there = fs::metadata(process.join("ns/net")).is_ok_and(|its| its.ino() == netns);
            there && arguments.split('\0').nth(1) == Some("node")
        };
        let mut processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let agent = processes.find(|process| is_agent(process)).expect("no agent runs");
        Pid::from_raw(agent.file_name().unwrap().to_str().unwrap().parse().unwrap())
    }
}

/// Runs a command, which must do well. Gives what it printed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Writes an image of the program under test as `cargo xtask image` does, but with the libraries that it needs: the
/// tests' is no static one.
fn write_image(out: &Path) {
    let binary = binary().unwrap();
    let stripped = out.with_extension("stripped");
    run(Command::new("strip").arg("-o").arg(&stripped).arg(&binary));
    let needed = run(Command::new("ldd").arg(&binary));
    let libraries =
        needed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let mut files = vec![("orlop", fs::read(&stripped).unwrap())];
    files.extend(libraries.map(|path| (&path[1..], fs::read(path).unwrap())));
    fs::remove_file(stripped).unwrap();
    let files: Vec<_> = files.iter().map(|(name, content)| (*name, 0o755, &content[..])).collect();
    let config = json!({"Entrypoint": ["/orlop"], "User": "65532:65532", "WorkingDir": "/"});
    Image::write_alone(out, env!("CARGO_PKG_VERSION"), &files, &config).unwrap();
}
