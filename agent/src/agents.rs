//! Asks the admin API of agents: of the one on this machine, or of a cluster's through its API server.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::HOST,
};
use hyper_util::rt::TokioIo;
use orlop_kube::{
    AgentPod, Agents,
    preflight::{Part, Preflight, Role},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use crate::cli::AgentArguments;

/// For the whole answer of one agent.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Of the admin API in the chart.
const ADMIN_PORT: u16 = 15000;
/// Where controllers say how they are.
const HEALTH_PORT: u16 = 15021;
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ADMIN_PORT);

/// What an agent of a cluster answers.
pub struct Answer {
    pub node: String,
    pub body: anyhow::Result<Bytes>,
}

/// How many of a cluster's agents are asked, where no node is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    All,
    /// The first that answers: what is asked for is the same everywhere.
    Any,
}

/// Asks the agent on this machine; `None` where a cluster's are to be asked: one is named, or a kubeconfig names one and
/// there is no agent here.
pub fn ask_here(arguments: &AgentArguments, path: &str) -> anyhow::Result<Option<Bytes>> {
    if arguments.of_cluster() {
        return Ok(None);
    }
    match ask(arguments.admin.unwrap_or(ADMIN), path) {
        Ok(answer) => Ok(Some(answer)),
        Err(_) if arguments.admin.is_none() && has_kubeconfig() => {
            eprintln!("orlop: no agent runs on this machine: asking those of your kubeconfig's cluster");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Where kubectl finds one as well.
fn has_kubeconfig() -> bool {
    let home = std::env::home_dir().map(|home| home.join(".kube/config"));
    std::env::var_os("KUBECONFIG").is_some_and(|paths| !paths.is_empty())
        || home.is_some_and(|path| path.exists())
}

fn ask(admin: SocketAddr, path: &str) -> anyhow::Result<Bytes> {
    let asked = async { get(TcpStream::connect(admin).await?, &admin.to_string(), path).await };
    runtime()?.block_on(async { timeout(TIMEOUT, asked).await? }).with_context(|| {
        format!(
            "no answer from {admin}; is `orlop node` running here, with this --admin? `--kube` and `--node NAME` \
             ask agents of a cluster"
        )
    })
}

/// Asks agents of a cluster, in the order of their nodes.
pub fn ask_cluster(arguments: &AgentArguments, which: Which, path: &str) -> anyhow::Result<Vec<Answer>> {
    runtime()?.block_on(async {
        let agents = Agents::of(
            arguments.kubeconfig.as_deref(),
            arguments.context.as_deref(),
            &arguments.namespace,
        )
        .await?;
        let mut pods = agents.list().await?;
        if pods.is_empty() {
            bail!(
                "there are no agents in namespace {}; is Orlop installed in another one? name it with --namespace",
                arguments.namespace
            );
        }
        if let Some(node) = &arguments.node {
            let nodes: Vec<String> = pods.iter().map(|pod| pod.node.clone()).collect();
            pods.retain(|pod| pod.node == *node);
            if pods.is_empty() {
                bail!("no agent runs on a node {node}; there are some on {}", nodes.join(", "));
            }
        }
        let mut answers = Vec::new();
        for pod in pods {
            let asked = timeout(TIMEOUT, ask_pod(&agents, &pod, path)).await;
            let body = asked.unwrap_or_else(|late| Err(late.into()));
            if which == Which::Any && body.is_ok() {
                return Ok(vec![Answer { node: pod.node, body }]);
            }
            answers.push(Answer { node: pod.node, body });
        }
        Ok(answers)
    })
}

/// The answers that came, after a line about each that did not, and whether all did.
pub fn complain(answers: Vec<Answer>) -> (Vec<(String, Bytes)>, bool) {
    let asked = answers.len();
    let came: Vec<_> = answers
        .into_iter()
        .filter_map(|answer| match answer.body {
            Ok(body) => Some((answer.node, body)),
            Err(error) => {
                eprintln!("orlop: no answer from node {}: {error:#}", answer.node);
                None
            }
        })
        .collect();
    let complete = came.len() == asked;
    (came, complete)
}

async fn ask_pod(agents: &Agents, pod: &AgentPod, path: &str) -> anyhow::Result<Bytes> {
    get(agents.dial(pod, ADMIN_PORT).await?, "localhost", path).await
}

/// Asks a waypoint or gateway as an agent is asked, and a controller where it says how it is.
pub async fn ask_part(preflight: &Preflight, part: &Part, path: &str) -> anyhow::Result<Bytes> {
    let port = if part.role == Role::Controller { HEALTH_PORT } else { ADMIN_PORT };
    let asked = async { get(preflight.dial(part, port).await?, "localhost", path).await };
    timeout(TIMEOUT, asked).await?
}

pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    path: &str,
) -> anyhow::Result<Bytes> {
    let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header(HOST, host).body(Empty::<Bytes>::new())?;
    let answer = async {
        let answer = send.send_request(request).await?;
        let status = answer.status();
        anyhow::ensure!(status == StatusCode::OK, "the answer to {path} is {status}");
        Ok(Incoming::collect(answer.into_body()).await?.to_bytes())
    };
    let connection = async {
        connection.await?;
        // The answer says more.
        std::future::pending().await
    };
    tokio::select! {
        biased;
        answer = answer => answer,
        ended = connection => ended,
    }
}
