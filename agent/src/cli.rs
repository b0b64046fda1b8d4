mod access_log;
mod boot_gate;
mod check;
mod controller;
mod http_proxy;
mod webhook;

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use orlop_identity::CaAddress;
use orlop_model::{DEFAULT_ROOT_NAMESPACE, NamespacedName, Settings, TrustDomain};

pub use self::{
    access_log::AccessLogArguments,
    boot_gate::{BootGateArguments, GateArguments, PlaceArguments, StaticPodArguments},
    check::CheckArguments,
    controller::ControllerArguments,
    http_proxy::{GatewayArguments, ProxyArguments, TraceArguments, WaypointArguments},
    webhook::WebhookArguments,
};

/// Where the admin API listens.
const ADMIN: &str = "127.0.0.1:15000";

/// A service mesh for Kubernetes without sidecars.
#[derive(Debug, Parser)]
#[command(name = "orlop", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enrol this node's pods and carry their connections.
    #[command(args_override_self = true)]
    Node(Box<NodeArguments>),
    /// Hold what `orlop node` listens on while none runs, beside it: whoever dials then waits for the next one.
    Keeper(KeeperArguments),
    /// Hold pods of the mesh that start without `orlop node`: static ones, and those that this node had when it went down.
    /// Run before kubelet.
    Gate(GateArguments),
    /// Read the HTTP of services behind a waypoint, and carry each request to an endpoint.
    #[command(args_override_self = true)]
    Waypoint(Box<WaypointArguments>),
    /// Take clients from outside the mesh on a Gateway's listeners, and carry each request to an endpoint.
    Gateway(Box<GatewayArguments>),
    /// Sign the nodes' certificates, and do what one process does for a cluster.
    Controller(Box<ControllerArguments>),
    /// Tell an API server what is wrong with policies and routes before it stores them.
    Webhook(Box<WebhookArguments>),
    /// Say what would become of a connection, and why, from the objects of a cluster or a world directory alone.
    Explain(Box<ExplainArguments>),
    /// Say whether this kernel has everything that `orlop node` needs, or how a cluster stands before Orlop is
    /// installed and after, and what to do if not.
    Check(CheckArguments),
    /// Rotate the embedded CA's root, or revoke certificates, while nodes run.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Print the last connections of a node, or of all of a cluster, that ended, one JSON object a line.
    Flows(FlowsArguments),
    /// Say which pods of a node are in the mesh, or why not, and how their certificates stand.
    Status(InspectArguments),
    /// List the pods and WorkloadEntries that a node knows.
    Workloads(InspectArguments),
    /// List the services that a node knows, with their ports and how many endpoints each has.
    Services(InspectArguments),
    /// List the policies in force, and what their authors should know.
    Policies(InspectArguments),
    /// List the certificates of a node's pods.
    Certs(InspectArguments),
    /// Print what a shell needs to complete `orlop`'s arguments: `source <(orlop completion bash)`.
    Completion {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Remove what `orlop node` left pinned, and have it leave the node's start alone: every pod of this node talks in clear again.
    Clean(CleanArguments),
}

#[derive(Args, Debug)]
pub struct NodeArguments {
    #[command(flatten)]
    pub world: WorldArguments,
    #[command(flatten)]
    pub place: PlaceArguments,
    #[command(flatten)]
    pub authority: AuthorityArguments,
    #[command(flatten)]
    pub names: NameArguments,
    #[command(flatten)]
    pub gate: BootGateArguments,
    /// How pods of this node talk to each other once the proxy has let one connection through.
    #[arg(long, value_enum, default_value_t = SameNode::Kernel)]
    pub same_node: SameNode,
    /// Admin API: /config_dump, /flows and /udp. Loopback addresses only.
    #[arg(long, value_name = "ADDRESS", default_value = ADMIN, value_parser = loopback)]
    pub admin: SocketAddr,
    /// Prometheus metrics: /metrics.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15020")]
    pub metrics: SocketAddr,
    /// Readiness: /healthz/ready.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15021")]
    pub ready: SocketAddr,
    /// DNS server for the hosts of ServiceEntries and WorkloadEntries [default: those of /etc/resolv.conf].
    #[arg(long, value_name = "ADDRESS", value_parser = dns_server)]
    pub host_resolver: Option<SocketAddr>,
    /// How long open connections may go on after SIGTERM, or after another agent has taken over.
    #[arg(long, value_name = "TIME", default_value = "25s", value_parser = duration)]
    pub drain_timeout: Duration,
    /// Once another agent has taken over, end only after SIGTERM, or if no agent serves any more: for kubelet, which
    /// starts anew what ends, and that would take over again.
    #[arg(long)]
    pub linger: bool,
    /// How long a server or a peer's proxy may take to answer.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub connect_timeout: Duration,
    /// How long a TLS handshake may take.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub handshake_timeout: Duration,
    /// A connection on which nothing moves for this long is closed.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub idle_timeout: Duration,
    /// A tunnel without connections for this long is closed.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub tunnel_idle_timeout: Duration,
    /// Connections open at once; further ones are refused [default: 100000, or as many as the limit of open
    /// files allows].
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,
    /// Of these, how many may be one pod's [default: half].
    #[arg(long, value_name = "N")]
    pub max_connections_per_pod: Option<usize>,
    /// Open files; a connection takes up to two [default: as many as fs.nr_open allows, at most 1,048,576].
    #[arg(long, value_name = "N")]
    pub max_descriptors: Option<u64>,
    /// Resident memory, such as 512MiB, past which new connections are refused [default: nine tenths of what
    /// the agent's cgroup may have].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_memory: Option<u64>,
    /// How many of the last connections that ended are kept for `orlop flows`, some 500 bytes each.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub flow_buffer: usize,
    /// Whether to answer the pods' DNS in the node.
    #[arg(long, value_enum, value_name = "on|off", default_value_t = Switch::On, hide_possible_values = true)]
    pub dns: Switch,
    /// Resolver to ask, from the node's own network, instead of the one that a pod asked.
    #[arg(long, value_name = "ADDRESS")]
    pub dns_upstream: Option<SocketAddr>,
    /// Threads that carry connections [default: one a core].
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,
    #[command(flatten)]
    pub log: LogArguments,
}

#[derive(Args, Debug)]
pub struct KeeperArguments {
    /// The agent's --run-dir.
    #[arg(long, value_name = "DIR", default_value = "/run/orlop")]
    pub run_dir: PathBuf,
    /// How long whoever dials waits for an agent. After that enrolled pods are refused until one serves.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub hold: Duration,
    #[command(flatten)]
    pub log: LogArguments,
}

/// Where the objects come from.
#[derive(Args, Debug)]
pub struct WorldArguments {
    /// Directory of Kubernetes objects as YAML; `orlop node` and `waypoint` follow its changes.
    #[arg(long = "world", value_name = "DIR", required_unless_present = "kube", conflicts_with = "kube")]
    pub directory: Option<PathBuf>,
    /// The objects of a Kubernetes cluster: the one that this pod runs in, or that $KUBECONFIG names.
    #[arg(long)]
    pub kube: bool,
    /// Of the cluster that this names.
    #[arg(long, value_name = "FILE", requires = "kube")]
    pub kubeconfig: Option<PathBuf>,
}

/// Who signs the pods' certificates.
#[derive(Args, Debug)]
pub struct AuthorityArguments {
    /// Directory of the embedded CA's root; made on first use, shared by the nodes of one machine.
    #[arg(long, value_name = "DIR", conflicts_with = "ca_address", required_unless_present = "ca_address")]
    pub ca_dir: Option<PathBuf>,
    /// A CA that serves Istio's certificate service, such as `orlop controller`: https://HOST:PORT.
    #[arg(long, value_name = "URL")]
    pub ca_address: Option<CaAddress>,
    /// The roots that are trusted, PEM, and revocation lists: of the CA's own certificate and of the peers'. Followed.
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/orlop.dev/root/root-cert.pem")]
    pub ca_root: PathBuf,
    /// The service-account token that the CA knows this node by; read for each certificate.
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/orlop.dev/token/token")]
    pub ca_token: PathBuf,
}

/// What identities and hosts are called.
#[derive(Args, Debug)]
pub struct NameArguments {
    /// Trust domain of every identity.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
    /// Another name of the trust domain in policies; may be given several times.
    #[arg(long = "trust-domain-alias", value_name = "TRUST_DOMAIN")]
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Namespace whose policies are for the whole mesh.
    #[arg(long, value_name = "NAMESPACE", default_value = DEFAULT_ROOT_NAMESPACE)]
    pub root_namespace: String,
    /// Name of the cluster, in metrics and baggage.
    #[arg(long, default_value = "Kubernetes")]
    pub cluster: String,
    /// DNS suffix of services.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// The network of this node, as Istio's label `topology.istio.io/network` has it: backends of another one are
    /// not dialled [default: all can be].
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
}

impl NameArguments {
    /// The arguments that say the same.
    pub fn to_args(&self) -> Vec<String> {
        let mut args = vec![
            format!("--trust-domain={}", self.trust_domain),
            format!("--root-namespace={}", self.root_namespace),
            format!("--cluster={}", self.cluster),
            format!("--cluster-domain={}", self.cluster_domain),
        ];
        args.extend(self.trust_domain_aliases.iter().map(|alias| format!("--trust-domain-alias={alias}")));
        args.extend(self.network.iter().map(|network| format!("--network={network}")));
        args
    }

    /// The settings that a world is compiled with, seen from `node`.
    pub fn settings(&self, node: &str) -> Settings {
        Settings {
            node: node.to_owned(),
            trust_domain: self.trust_domain.clone(),
            trust_domain_aliases: self.trust_domain_aliases.clone(),
            root_namespace: self.root_namespace.clone(),
            cluster: self.cluster.clone(),
            cluster_domain: self.cluster_domain.clone(),
            network: self.network.clone(),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make a new root that every node trusts, and then have it sign; `--finish` ends the trust in the old one.
    Rotate {
        #[command(flatten)]
        directory: CaDirectory,
        /// Trust the old root no more.
        #[arg(long)]
        finish: bool,
        /// How long the nodes may take to see what has changed; they look every 200 ms.
        #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
        wait: Duration,
    },
    /// Refuse certificates from now on, and cut what they have open.
    Revoke {
        #[command(flatten)]
        directory: CaDirectory,
        /// Serial numbers in hex, as /config_dump has them, or files that hold certificates (PEM or DER).
        #[arg(value_name = "SERIAL|FILE", required = true)]
        certificates: Vec<String>,
    },
}

#[derive(Args, Debug)]
pub struct CaDirectory {
    /// The directory that the nodes were given.
    #[arg(long, value_name = "DIR")]
    pub ca_dir: PathBuf,
    /// Trust domain of every identity.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
}

#[derive(Args, Debug)]
pub struct FlowsArguments {
    #[command(flatten)]
    pub agents: AgentArguments,
}

/// Which agents are asked: the one on this machine, unless there is none or a cluster is named.
#[derive(Args, Debug)]
pub struct AgentArguments {
    /// The admin API of an agent on this machine [default: 127.0.0.1:15000, and where nobody answers there, the agents of
    /// the cluster that $KUBECONFIG or ~/.kube/config names].
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["kube", "node", "kubeconfig", "context"])]
    pub admin: Option<SocketAddr>,
    /// The agents of a Kubernetes cluster, through its API server: of the one that $KUBECONFIG or ~/.kube/config names.
    #[arg(long)]
    pub kube: bool,
    /// The agent of this node of the cluster.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Of the cluster that this names.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Of the cluster of this context of the kubeconfig.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The namespace that Orlop is installed in.
    #[arg(long, short, default_value = "orlop-system")]
    pub namespace: String,
}

impl AgentArguments {
    /// All agents of a cluster.
    pub fn of_all(kubeconfig: Option<PathBuf>, context: Option<String>, namespace: &str) -> Self {
        let (kube, namespace) = (true, namespace.to_owned());
        Self { admin: None, kube, node: None, kubeconfig, context, namespace }
    }

    /// Whether it is a cluster's.
    pub fn of_cluster(&self) -> bool {
        self.kube || self.node.is_some() || self.kubeconfig.is_some() || self.context.is_some()
    }
}

#[derive(Args, Debug)]
pub struct InspectArguments {
    #[command(flatten)]
    pub agents: AgentArguments,
    /// How to print it.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Lines for people.
    Table,
    /// Longer ones.
    Wide,
    Json,
    Yaml,
}

#[derive(Args, Debug)]
pub struct ExplainArguments {
    #[command(flatten)]
    pub connection: Option<ConnectionArguments>,
    /// Judge the flows of this file (`-` for standard input), as `orlop flows` prints them, and tell those that
    /// would fare differently.
    #[arg(long, value_name = "FILE", conflicts_with = "connection", required_unless_present = "connection")]
    pub replay: Option<PathBuf>,
    #[command(flatten)]
    pub world: WorldArguments,
    /// Of the cluster of this context of the kubeconfig.
    #[arg(long, value_name = "NAME", requires = "kube")]
    pub context: Option<String>,
    #[command(flatten)]
    pub names: NameArguments,
}

/// A connection that nobody has made.
#[derive(Args, Debug)]
#[group(id = "connection")]
pub struct ConnectionArguments {
    /// The pod that dials.
    #[arg(long, value_name = "NAMESPACE/POD", required = false, requires_all = ["to", "port"])]
    pub from: NamespacedName,
    /// The pod or service that is dialled.
    #[arg(long, value_name = "NAMESPACE/NAME", required = false, requires_all = ["from", "port"])]
    pub to: NamespacedName,
    /// The port that is dialled.
    #[arg(long, required = false, requires_all = ["from", "to"])]
    pub port: u16,
    /// A request in it, for the waypoint to judge, if there is one.
    #[arg(long, value_name = "METHOD PATH", requires = "from")]
    pub request: Option<RequestLine>,
    /// The request's host; that which is dialled, unless given.
    #[arg(long, requires = "request")]
    pub host: Option<String>,
    /// A header of the request; may be given several times. A token in it is verified if its issuer's keys are inline.
    #[arg(long, value_name = "NAME: VALUE", requires = "request")]
    pub header: Vec<Header>,
    /// A claim of the request's token, in place of a token; may be given several times, and a name several times for a
    /// list. The token is one that was verified, of the issuer that `iss` names, or else of the first whose are taken.
    #[arg(long, value_name = "NAME=VALUE", requires = "request")]
    pub claims: Vec<GivenClaim>,
}

/// The first line of a request, without its version.
#[derive(Clone, Debug)]
pub struct RequestLine {
    pub method: String,
    /// With its query, if it has one.
    pub path: String,
}

impl FromStr for RequestLine {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (method, path) =
            text.split_once(' ').ok_or("write it as METHOD PATH, such as \"GET /users/7\"")?;
        Ok(Self { method: method.to_owned(), path: path.trim().to_owned() })
    }
}

/// A header, with its name in lower case.
#[derive(Clone, Debug)]
pub struct Header {
    pub name: String,
    pub value: String,
}

impl FromStr for Header {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once(':').ok_or("write it as \"NAME: VALUE\"")?;
        Ok(Self { name: name.trim().to_ascii_lowercase(), value: value.trim().to_owned() })
    }
}

#[derive(Clone, Debug)]
pub struct GivenClaim {
    pub name: String,
    pub value: String,
}

impl FromStr for GivenClaim {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
        Ok(Self { name: name.to_owned(), value: value.to_owned() })
    }
}

#[derive(Args, Debug)]
pub struct LogArguments {
    /// What to log, for example `info`, `debug` or `warn,access=info`.
    #[arg(long, env = "ORLOP_LOG", default_value = "info")]
    pub log: String,
    /// How to write it.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SameNode {
    /// Straight, at the speed of the kernel; not encrypted.
    Kernel,
    /// Through a tunnel, like pods of two nodes.
    Hbone,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// One line of key=value pairs.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Args, Debug)]
pub struct CleanArguments {
    /// Where maps and links are pinned.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/orlop")]
    pub bpffs: PathBuf,
    /// The agent's --state-dir.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/orlop")]
    pub state_dir: PathBuf,
}

fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

/// An address without a port means port 53.
fn dns_server(text: &str) -> Result<SocketAddr, String> {
    let bare = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
    bare.or_else(|_| text.parse()).map_err(|_| "want an IP address, or one with a port".into())
}

fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "KiB" | "Ki" => 1 << 10,
        "MiB" | "Mi" => 1 << 20,
        "GiB" | "Gi" => 1 << 30,
        other => return Err(format!("{other:?} is none of KiB, MiB and GiB")),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{error}"))?;
    number.checked_mul(unit).ok_or_else(|| "too large".into())
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|error| format!("{error}"))?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err("the admin API shows the whole configuration and must stay on a loopback address".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_a_controller_is_told_of_names_a_waypoint_understands_alike() {
        let given = [
            "orlop",
            "controller",
            "--name=a",
            "--trust-domain=shop.example",
            "--trust-domain-alias=old.example",
            "--root-namespace=mesh",
            "--cluster=c1",
            "--cluster-domain=c1.local",
            "--network=n1",
            "--waypoint-image=orlop:1",
        ];
        let Command::Controller(controller) = Cli::parse_from(given).command else { panic!() };
        let made = controller.waypoints().unwrap();
        let first = ["orlop", "waypoint", "--kube", "--name=shop/gate"].map(str::to_owned);
        let Command::Waypoint(waypoint) = Cli::parse_from(first.into_iter().chain(made.args)).command else {
            panic!()
        };
        let settings =
            [&controller.names, &waypoint.proxy.names].map(|names| format!("{:?}", names.settings("")));
        assert_eq!(settings[0], settings[1]);
        let authority = "https://orlop-controller.orlop-system.svc.c1.local:15012";
        assert_eq!(waypoint.proxy.authority.ca_address, Some(authority.parse().unwrap()));
    }

    #[test]
    fn a_dns_server_may_leave_out_its_port() {
        assert_eq!(dns_server("10.96.0.10"), Ok("10.96.0.10:53".parse().unwrap()));
        assert_eq!(dns_server("fd00::a"), Ok("[fd00::a]:53".parse().unwrap()));
        assert_eq!(dns_server("[fd00::a]:5353"), Ok("[fd00::a]:5353".parse().unwrap()));
        assert!(dns_server("dns.example.com").is_err());
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(size("4Gi"), Ok(4 << 30));
        assert_eq!(size("1000"), Ok(1000));
        assert!(["", "MiB", "5 MB", "99999999999GiB", "-1"].iter().all(|text| size(text).is_err()));
    }

    #[test]
    fn the_admin_api_stays_on_loopback() {
        assert!(loopback("127.0.0.1:15000").is_ok());
        assert!(loopback("[::1]:15000").is_ok());
        assert!(loopback("0.0.0.0:15000").is_err());
    }
}
