//! `orlop flows`: what the node's proxy tells of its last connections.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::HOST,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::cli::FlowsArguments;

/// For the whole answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Prints the flows, the oldest first.
pub fn run(arguments: &FlowsArguments) -> anyhow::Result<()> {
    let flows = fetch(arguments.admin, "/flows").with_context(|| {
        format!("no flows from {}; is `orlop node` running here, with this --admin?", arguments.admin)
    })?;
    match io::stdout().write_all(&flows) {
        // Who reads them has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot print"),
    }
}

/// What an agent's admin API answers.
pub fn fetch(admin: SocketAddr, path: &str) -> anyhow::Result<Bytes> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { timeout(TIMEOUT, get(admin, path)).await? })
}

async fn get(admin: SocketAddr, path: &str) -> anyhow::Result<Bytes> {
    let tcp = TcpStream::connect(admin).await?;
    let (mut send, connection) = http1::handshake(TokioIo::new(tcp)).await?;
    let request = Request::get(path).header(HOST, admin.to_string()).body(Empty::<Bytes>::new())?;
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
