//! The agent as server.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use orlop_identity::{ALPN_H2, peer_identity};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, NamedGroup, ProtocolVersion};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::MIB;
use crate::hbone::{connect_request, hbone, identities, identity, trust_domain, within, write};
use crate::mesh::{Mesh, await_value, record, tunnels};
use crate::pattern::{Pattern, assert_reset, receive, reset};
use crate::tunnel::accept;

const PORT: u16 = 80;

fn client_config(mesh: &Mesh) -> Arc<ClientConfig> {
    let identities = identities(&mesh.testbed, &["client"]);
    identities.client_config(&identity("client"), &identity("server")).unwrap()
}

async fn tls(to: SocketAddr, config: Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let tcp = TcpStream::connect(to).await.unwrap();
    TlsConnector::from(config).connect(ServerName::IpAddress(to.ip().into()), tcp).await.unwrap()
}

async fn open(to: SocketAddr, config: Arc<ClientConfig>, http: &Builder) -> SendRequest<Bytes> {
    let (send, connection) = http.handshake(tls(to, config).await).await.unwrap();
    spawn_local(async move {
        let _ = connection.await;
    });
    send.ready().await.unwrap()
}

/// A stream to `authority` that was answered with 200.
async fn stream(
    tunnel: &mut SendRequest<Bytes>,
    authority: &str,
    headers: &[(&'static str, &str)],
) -> (SendStream<Bytes>, RecvStream) {
    let request = connect_request(authority, headers);
    let (answer, send) = tunnel.send_request(request, false).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    (send, answer.into_body())
}

async fn read_exact(receive: &mut RecvStream, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let data = receive.data().await.expect("more").unwrap();
        receive.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend(data);
    }
    bytes
}

/// The stream ends, without a reset and without more data.
async fn assert_ends(receive: &mut RecvStream) {
    while let Some(data) = receive.data().await {
        assert_eq!(data.unwrap(), "");
    }
}

/// What blocks, apart from the tunnels.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[test]
fn its_handshake_is_tls_1_3_with_h2_a_hybrid_key_exchange_and_its_identity() {
    let mesh = Mesh::second_only(&[]);
    let (config, to) = (client_config(&mesh), hbone(&mesh.server));
    within(&mesh.client, async move || {
        let stream = tls(to, config).await;
        let session = stream.get_ref().1;
        assert_eq!(session.alpn_protocol(), Some(ALPN_H2));
        assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let group = session.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, NamedGroup::X25519MLKEM768);
        let server = peer_identity(session.peer_certificates().unwrap(), &trust_domain());
        assert_eq!(server.unwrap(), identity("server"));
    });
}

#[test]
fn a_connect_reaches_the_server_which_sees_the_real_client() {
    let mesh = Mesh::second_only(&[]);
    let (config, to) = (client_config(&mesh), hbone(&mesh.server));
    for v6 in [false, true] {
        let listener = mesh.server.listen(v6, PORT).unwrap();
        let (authority, client) = if v6 {
            (mesh.server.addr6(PORT), mesh.client.addr6(4711))
        } else {
            (mesh.server.addr(PORT), mesh.client.addr(4711))
        };
        // A tunnel comes from the address whose connections it carries.
        let to = SocketAddr::new(authority.ip(), to.port());
        let config = Arc::clone(&config);
        within(&mesh.client, async move || {
            let mut tunnel = open(to, config, &Builder::new()).await;
            let forwarded = format!("for=\"{client}\"");
            let (mut send, mut receive) =
                stream(&mut tunnel, &authority.to_string(), &[("forwarded", &forwarded)]).await;
            write(&mut send, Bytes::from_static(b"hello")).await.unwrap();
            let (peer, hello) = blocking(move || {
                let (server, peer) = listener.accept().unwrap();
                let mut hello = [0; 5];
                (&server).read_exact(&mut hello).unwrap();
                (&server).write_all(b"there").unwrap();
                (peer, hello)
            })
            .await;
            assert_eq!((peer, &hello), (client, b"hello"));
            assert_eq!(read_exact(&mut receive, 5).await, b"there");
            send.send_data(Bytes::new(), true).unwrap();
            assert_ends(&mut receive).await;
        });
    }
    let seen = record(mesh.server_agent(), &[("src_workload", "shop/client")]);
    assert_eq!(seen["src_identity"], identity("client").as_str());
}

#[test]
fn the_other_familys_address_of_the_pod_is_a_destination_too() {
    let mesh = Mesh::second_only(&[]);
    let listener = mesh.server.listen(true, PORT).unwrap();
    let (config, to) = (client_config(&mesh), hbone(&mesh.server));
    let authority = mesh.server.addr6(PORT).to_string();
    within(&mesh.client, async move || {
        let mut tunnel = open(to, config, &Builder::new()).await;
        let _stream = stream(&mut tunnel, &authority, &[]).await;
        accept(&listener).unwrap();
    });
}

#[test]
fn bulk_goes_through_a_tunnel_with_ztunnels_windows_and_frames() {
    const LENGTH: usize = 20_000_000;
    let mesh = Mesh::second_only(&[]);
    let echo = mesh.server.serve_echo(PORT).unwrap();
    let (config, to) = (client_config(&mesh), hbone(&mesh.server));
    within(&mesh.client, async move || {
        let mut http = Builder::new();
        http.initial_window_size(4 * MIB).initial_connection_window_size(16 * MIB).max_frame_size(MIB);
        let mut tunnel = open(to, config, &http).await;
        let streams = (1..=5_u8).map(|seed| {
            let request = connect_request(&echo.addr().to_string(), &[]);
            let (answer, mut send) = tunnel.send_request(request, false).unwrap();
            spawn_local(async move {
                let mut receive = answer.await.unwrap().into_body();
                let sent = spawn_local(async move {
                    write(&mut send, Pattern::new(seed).take(LENGTH).into()).await.unwrap();
                    send.send_data(Bytes::new(), true).unwrap();
                });
                let mut pattern = Pattern::new(seed);
                while let Some(data) = receive.data().await {
                    let data = data.unwrap();
                    pattern.check(&data);
                    receive.flow_control().release_capacity(data.len()).unwrap();
                }
                assert_eq!(pattern.position(), LENGTH as u64);
                sent.await.unwrap();
            })
        });
        for stream in streams.collect::<Vec<_>>() {
            stream.await.unwrap();
        }
    });
    await_value(0.0, || tunnels(mesh.server_agent(), "inbound"));
}

#[test]
fn the_end_of_a_stream_is_a_half_close_both_ways() {
    let mesh = Mesh::second_only(&[]);
    let listener = mesh.server.listen(false, PORT).unwrap();
    let (config, to) = (client_config(&mesh), hbone(&mesh.server));
    let authority = mesh.server.addr(PORT).to_string();
    within(&mesh.client, async move || {
        let mut tunnel = open(to, config, &Builder::new()).await;
        let (mut send, mut receive) = stream(&mut tunnel, &authority, &[]).await;
        let server = accept(&listener).unwrap();
        send.send_data(Bytes::from_static(b"question"), true).unwrap();
        let (server, question) = blocking(move || {
            let mut question = Vec::new();
            (&server).read_to_end(&mut question).unwrap();
            (server, question)
        })
        .await;
        assert_eq!(question, b"question");
        (&server).write_all(b"answer").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_exact(&mut receive, 6).await, b"answer");
        assert_ends(&mut receive).await;
    });
}

#[test]
fn a_reset_stream_is_a_reset_for_the_server() {
    let mesh = Mesh::second_only(&[]);
    let listener = mesh.server.listen(false, PORT).unwrap();
    let (config, to) = (client_config(&mesh), hbone(&mesh.server));
    let authority = mesh.server.addr(PORT).to_string();
    within(&mesh.client, async move || {
        let mut tunnel = open(to, config, &Builder::new()).await;
        let (mut send, _receive) = stream(&mut tunnel, &authority, &[]).await;
        let server = accept(&listener).unwrap();
        write(&mut send, Pattern::new(1).take(1000).into()).await.unwrap();
        let server = blocking(move || {
            receive(&server, 1, 1000).unwrap();
            server
        })
        .await;
        send.send_reset(Reason::CANCEL);
        blocking(move || assert_reset(&server)).await;
    });
}

#[test]
fn a_reset_by_the_server_is_a_reset_stream() {
    let mesh = Mesh::second_only(&[]);
    let listener = mesh.server.listen(false, PORT).unwrap();
    let (config, to) = (client_config(&mesh), hbone(&mesh.server));
    let authority = mesh.server.addr(PORT).to_string();
    within(&mesh.client, async move || {
        let mut tunnel = open(to, config, &Builder::new()).await;
        let (_send, mut receive) = stream(&mut tunnel, &authority, &[]).await;
        reset(accept(&listener).unwrap());
        let error = receive.data().await.expect("no end in good order").unwrap_err();
        assert_eq!((error.is_reset(), error.reason()), (true, Some(Reason::CANCEL)));
    });
}

#[test]
fn a_refusing_server_is_answered_with_503() {
    let mesh = Mesh::second_only(&[]);
    let (config, to) = (client_config(&mesh), hbone(&mesh.server));
    let authority = mesh.server.addr(PORT).to_string();
    within(&mesh.client, async move || {
        let mut tunnel = open(to, config, &Builder::new()).await;
        let (answer, _send) = tunnel.send_request(connect_request(&authority, &[]), false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 503);
    });
    record(mesh.server_agent(), &[("result", "refused"), ("reason", "connect_failed")]);
}

#[test]
fn a_tunnel_takes_a_hundred_streams_at_once_and_says_so() {
    let mesh = Mesh::second_only(&[]);
    let echo = mesh.server.serve_echo(PORT).unwrap();
    let (config, to) = (client_config(&mesh), hbone(&mesh.server));
    within(&mesh.client, async move || {
        let mut http = Builder::new();
        http.initial_max_send_streams(1000);
        let mut tunnel = open(to, config, &http).await;
        let mut streams = Vec::new();
        for _ in 0..100 {
            streams.push(stream(&mut tunnel, &echo.addr().to_string(), &[]).await);
        }
        assert_eq!(tunnel.current_max_send_streams(), 100);
    });
}

#[test]
fn an_agent_that_ends_says_so_and_lets_streams_finish() {
    let mesh = &mut Mesh::second_only(&[]);
    let echo = mesh.server.serve_echo(PORT).unwrap();
    let (config, to) = (client_config(mesh), hbone(&mesh.server));
    let agent = mesh.server_agent();
    within(&mesh.client, async move || {
        let mut tunnel = open(to, config, &Builder::new()).await;
        let (mut send, mut receive) = stream(&mut tunnel, &echo.addr().to_string(), &[]).await;
        agent.terminate().unwrap();
        // Its GOAWAY is no event for whoever only has the handle.
        while tunnel.clone().ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        send.send_data(Bytes::from_static(b"last words"), true).unwrap();
        assert_eq!(read_exact(&mut receive, 10).await, b"last words");
        assert_ends(&mut receive).await;
    });
    assert!(mesh.server_agent_mut().wait(crate::mesh::TIMEOUT).unwrap().success());
}
