use std::{io, rc::Rc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    Source, answer, count,
    message::{Query, Read},
};
use crate::{outbound, pod::Pod, socket::Accepted, worker::Worker};

/// How long a client may take for a query (RFC 7766, 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// Until a query that has come in part is looked at again.
const PAUSE: Duration = Duration::from_millis(5);
/// Each message comes after its length (RFC 1035, 4.2.2).
const LENGTH: usize = 2;

/// Serves one connection that a hook sent to the DNS port: answers its queries for as long as the snapshot can, and
/// leaves it to the resolver with the first other one.
pub(crate) async fn serve(worker: &Rc<Worker>, pod: &Pod, mut client: Accepted) {
    let resolver = match outbound::original_destination(worker, &client) {
        Ok((resolver, _)) => worker.shared.config.dns.upstream.unwrap_or(resolver),
        Err(refusal) => return outbound::refuse(worker, client, refusal),
    };
    loop {
        // Not read yet: what is not ours must reach the resolver.
        let Ok(Ok(Some(framed))) = timeout(IDLE, peek(&client.tcp)).await else { return };
        let Some(answer) = answer_to(worker, pod, &framed[LENGTH..]) else {
            let movable = worker.shared.movable.enter_always();
            return outbound::serve(worker, pod, client, movable, Some(resolver)).await;
        };
        let Ok(Ok(())) = timeout(IDLE, exchange(&mut client.tcp, framed, answer)).await else { return };
    }
}

fn answer_to(worker: &Worker, pod: &Pod, bytes: &[u8]) -> Option<Vec<u8>> {
    let Read::Query(mut query) = Query::read(bytes) else { return None };
    let message = answer(&worker.shared.snapshot.load(), &pod.name().namespace, &mut query)?;
    count(&worker.shared.metrics, "tcp", Source::Cluster, message.metadata.response_code);
    query.encode_tcp(message)
}

/// The next message with its length, which stay in the socket; `None` at the end of the connection.
async fn peek(tcp: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; 512];
    loop {
        let there = tcp.peek(&mut buffer).await?;
        if there == 0 {
            return Ok(None);
        }
        if there >= LENGTH {
            let whole = LENGTH + usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
            buffer.resize(whole, 0);
            if there >= whole || tcp.peek(&mut buffer).await? == whole {
                return Ok(Some(buffer));
            }
        }
        sleep(PAUSE).await;
    }
}

/// Takes the query out of the socket and answers it.
async fn exchange(tcp: &mut TcpStream, mut query: Vec<u8>, answer: Vec<u8>) -> io::Result<()> {
    tcp.read_exact(&mut query).await?;
    let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    tcp.write_all(&[&length.to_be_bytes(), &answer[..]].concat()).await
}
