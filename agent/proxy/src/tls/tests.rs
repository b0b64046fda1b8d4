use std::{
    future::poll_fn,
    io::{self, ErrorKind},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use orlop_identity::{DEFAULT_LIFETIME, EmbeddedCa, Identities};
use orlop_model::{Identity, TrustDomain};
use rustls::{AlertDescription, ContentType, Error, crypto::cipher::OutboundChunks, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{TlsStream, record, stream};

/// What one end sends in these tests: longer than all buffers on the way.
const LENGTH: usize = 3 << 20;

/// Certificates of a CA in a directory of its own, which goes with it.
struct Pki {
    dir: PathBuf,
    identities: Identities,
}

impl Pki {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("orlop-tls-{}-{number}", std::process::id()));
        let ca = EmbeddedCa::open(&dir, &trust_domain()).unwrap();
        let identities = Identities::new(Arc::new(ca), trust_domain(), DEFAULT_LIFETIME);
        for account in ["client", "server"] {
            identities.ensure(&identity(account)).unwrap();
        }
        Self { dir, identities }
    }

    fn client(&self) -> Arc<rustls::ClientConfig> {
        self.identities.client_config(&identity("client"), &identity("server")).unwrap()
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        self.identities.server_config(&identity("server")).unwrap()
    }
}

impl Drop for Pki {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn trust_domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn identity(account: &str) -> Identity {
    Identity::new(&trust_domain(), "shop", account)
}

fn name() -> ServerName<'static> {
    ServerName::try_from("10.0.0.1").unwrap()
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

/// Both ends are ours.
async fn ours() -> (TlsStream, TlsStream) {
    let pki = Pki::new();
    let (client, server) = sockets().await;
    let (client, server) =
        tokio::join!(super::connect(client, pki.client(), name()), super::accept(server, pki.server()));
    (client.unwrap().0, server.unwrap().0)
}

/// The client is ours.
async fn our_client() -> (TlsStream, tokio_rustls::server::TlsStream<TcpStream>) {
    let pki = Pki::new();
    let (client, server) = sockets().await;
    let acceptor = TlsAcceptor::from(pki.server());
    let (client, server) =
        tokio::join!(super::connect(client, pki.client(), name()), acceptor.accept(server));
    let (client, session) = client.unwrap();
    assert_eq!(session.alpn.as_deref(), Some(b"h2".as_slice()));
    assert_eq!(session.certificates.len(), 1);
    (client, server.unwrap())
}

/// The server is ours.
async fn our_server() -> (tokio_rustls::client::TlsStream<TcpStream>, TlsStream) {
    let pki = Pki::new();
    let (client, server) = sockets().await;
    let connector = TlsConnector::from(pki.client());
    let (client, server) =
        tokio::join!(connector.connect(name(), client), super::accept(server, pki.server()));
    let (server, session) = server.unwrap();
    assert_eq!(session.alpn.as_deref(), Some(b"h2".as_slice()));
    assert_eq!(session.certificates.len(), 1);
    (client.unwrap(), server)
}

fn pattern(seed: usize) -> Vec<u8> {
    (0..LENGTH).map(|index| (index * 31 + index / 251 + seed) as u8).collect()
}

/// Sends one pattern in pieces of all sizes, receives the other, and closes in good order.
async fn exchange(stream: impl AsyncRead + AsyncWrite, sends: usize, receives: usize) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let send = async {
        let sent = pattern(sends);
        let mut rest = sent.as_slice();
        for size in [1, 7, 16_383, 16_384, 16_385, 70_000, 200_000].into_iter().cycle() {
            let (piece, after) = rest.split_at(size.min(rest.len()));
            writer.write_all(piece).await.unwrap();
            if size % 2 == 1 {
                writer.flush().await.unwrap();
            }
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        writer.shutdown().await.unwrap();
    };
    let receive = async {
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        assert!(received == pattern(receives), "{} bytes of {LENGTH} came, or others", received.len());
    };
    timeout(Duration::from_secs(30), async { tokio::join!(send, receive) }).await.unwrap();
}

#[tokio::test]
async fn data_is_carried_between_ours_and_rustls() {
    let (client, server) = our_client().await;
    tokio::join!(exchange(client, 1, 2), exchange(server, 2, 1));
    let (client, server) = our_server().await;
    tokio::join!(exchange(client, 1, 2), exchange(server, 2, 1));
    let (client, server) = ours().await;
    tokio::join!(exchange(client, 1, 2), exchange(server, 2, 1));
}

#[tokio::test]
async fn worn_keys_are_changed() {
    let (mut client, server) = our_client().await;
    client.sealer_mut().set_limit(3);
    tokio::join!(exchange(client, 1, 2), exchange(server, 2, 1));
}

#[tokio::test]
async fn a_peer_may_change_its_key_and_ask_for_ours() {
    let (mut client, mut server) = our_client().await;
    for round in 0..5u8 {
        server.get_mut().1.refresh_traffic_keys().unwrap();
        server.write_all(&[round]).await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), round);
        client.write_all(&[round]).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), round);
    }
}

#[tokio::test]
async fn an_end_without_close_notify_is_an_error() {
    let (mut client, server) = our_client().await;
    drop(server.into_inner().0);
    assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn one_half_may_be_closed_before_the_other() {
    let (mut client, mut server) = ours().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = Vec::new();
    server.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    server.write_all(b"answer").await.unwrap();
    server.shutdown().await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    assert_eq!(client.write_u8(1).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

/// Flips a bit of the `nth` byte that goes by.
async fn flip(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, nth: usize) {
    let (mut buffer, mut position) = ([0; 4096], 0);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if let Some(byte) = nth.checked_sub(position).and_then(|at| buffer[..read].get_mut(at)) {
            *byte ^= 1;
        }
        position += read;
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn what_was_tampered_with_is_never_given_out() {
    let (client, server) = ours().await;
    let [(near, far_client), (near_server, far)] = [sockets().await, sockets().await];
    // The ends as they are, over sockets with a relay in between.
    let mut client = client.over(near);
    let mut server = server.over(far);
    let ((mut up_from, mut up_back), (mut down_from, mut down_to)) =
        (far_client.into_split(), near_server.into_split());
    let relay = async {
        tokio::join!(
            flip(&mut up_from, &mut down_to, 20_000),
            flip(&mut down_from, &mut up_back, usize::MAX)
        );
    };
    let talk = async {
        client.write_all(&pattern(1)[..60_000]).await.unwrap();
        client.flush().await.unwrap();
        let mut received = Vec::new();
        let error = server.read_to_end(&mut received).await.unwrap_err();
        assert_eq!(rustls_error(&error), Some(&Error::DecryptError));
        assert_eq!(received, &pattern(1)[..16_384], "the whole first record and nothing else");
        // Asked again it says so again, though more has arrived.
        assert_eq!(rustls_error(&server.read_u8().await.unwrap_err()), Some(&Error::DecryptError));
        let told = client.read_u8().await.unwrap_err();
        assert_eq!(rustls_error(&told), Some(&Error::AlertReceived(AlertDescription::BadRecordMac)));
    };
    tokio::select! {
        () = relay => panic!("the relay ended"),
        () = talk => {}
    }
}

fn rustls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// What the server says to such a record from its client, and what the client hears.
async fn answer_to(record: impl FnOnce(&mut TlsStream)) -> (Error, Option<Error>) {
    let (mut client, mut server) = ours().await;
    record(&mut client);
    client.flush().await.unwrap();
    let error = timeout(Duration::from_secs(10), server.read_u8()).await.unwrap().unwrap_err();
    let told = timeout(Duration::from_secs(10), client.read_u8()).await.unwrap().unwrap_err();
    (rustls_error(&error).unwrap().clone(), rustls_error(&told).cloned())
}

#[tokio::test]
async fn records_that_have_no_place_here_end_the_connection() {
    use AlertDescription as Alert;
    type Record = (&'static str, fn(&mut TlsStream), Alert);
    let hostile: [Record; 7] = [
        ("in the clear", |c| c.queue(vec![22, 3, 3, 0, 1, 0]), Alert::UnexpectedMessage),
        ("too long", |c| c.queue(vec![23, 3, 3, 0x41, 1, 0]), Alert::RecordOverflow),
        ("not sealed", |c| c.queue([&[23, 3, 3, 0, 32][..], &[0; 32]].concat()), Alert::BadRecordMac),
        ("a hello", |c| sealed(c, ContentType::Handshake, &[1, 0, 0, 0]), Alert::UnexpectedMessage),
        ("a ticket", |c| sealed(c, ContentType::Handshake, &[4, 0, 0, 0]), Alert::UnexpectedMessage),
        ("half a message", |c| sealed(c, ContentType::Handshake, &[24, 0, 0]), Alert::DecodeError),
        (
            "a strange key update",
            |c| sealed(c, ContentType::Handshake, &[24, 0, 0, 1, 9]),
            Alert::IllegalParameter,
        ),
    ];
    for (what, record, alert) in hostile {
        let (error, told) = answer_to(record).await;
        assert_eq!(told, Some(Error::AlertReceived(alert)), "{what}: {error}");
    }
}

fn sealed(stream: &mut TlsStream, typ: ContentType, content: &[u8]) {
    stream.seal(typ, OutboundChunks::Single(content)).unwrap();
}

#[tokio::test]
async fn records_without_data_are_bounded() {
    for typ in [ContentType::ApplicationData, ContentType::Handshake] {
        let content: &[u8] = if typ == ContentType::Handshake { &[24, 0, 0, 1, 0] } else { &[] };
        let (error, _) = answer_to(|client| {
            for _ in 0..=stream::MAX_WITHOUT_DATA {
                if typ == ContentType::Handshake {
                    client.change_key().unwrap()
                } else {
                    sealed(client, typ, content)
                }
            }
        })
        .await;
        assert_eq!(error, rustls::PeerMisbehaved::TooManyKeyUpdateRequests.into());
    }
}

/// A peer that asks for new keys all the time, sends a byte now and then, and reads nothing.
#[tokio::test]
async fn who_asks_for_keys_and_reads_nothing_fills_no_memory() {
    let (mut client, mut server) = ours().await;
    let flood = async {
        for _ in 0..2_000 {
            for _ in 0..stream::MAX_WITHOUT_DATA {
                sealed(&mut client, ContentType::Handshake, &[24, 0, 0, 1, 1]);
                client.next_sending_key();
            }
            client.write_all(&[1]).await.unwrap();
            client.flush().await.unwrap();
        }
        client.shutdown().await.unwrap();
    };
    let read = async {
        let mut bytes = Vec::new();
        server.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes.len(), 2_000);
    };
    timeout(Duration::from_secs(60), async { tokio::join!(flood, read) }).await.unwrap();
    assert_eq!(server.queued(), 0);
}

/// All that the client says comes in one piece, which is more than rustls must see of it.
#[tokio::test]
async fn what_follows_the_handshake_at_once_is_ours() {
    let pki = Pki::new();
    let (client, relay_client) = sockets().await;
    let (relay_server, server) = sockets().await;
    let (mut from_client, mut to_client) = relay_client.into_split();
    let (mut from_server, mut to_server) = relay_server.into_split();
    let relay = async {
        let mut hello = vec![0; 4096];
        let read = from_client.read(&mut hello).await.unwrap();
        to_server.write_all(&hello[..read]).await.unwrap();
        tokio::join!(tokio::io::copy(&mut from_server, &mut to_client), async {
            // The client's last flight, its keys and its data, all at once.
            let mut rest = Vec::new();
            from_client.read_to_end(&mut rest).await.unwrap();
            to_server.write_all(&rest).await.unwrap();
        })
    };
    let client = async {
        let (mut client, _) = super::connect(client, pki.client(), name()).await.unwrap();
        sealed(&mut client, ContentType::Handshake, &[24, 0, 0, 1, 1]);
        client.next_sending_key();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
    };
    let server = async {
        let (mut server, _) = super::accept(server, pki.server()).await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
    };
    let talk = async { tokio::join!(client, server) };
    let ((copied, ()), _) =
        timeout(Duration::from_secs(30), async { tokio::join!(relay, talk) }).await.unwrap();
    copied.unwrap();
}

#[tokio::test]
async fn a_peer_that_is_not_who_was_meant_is_told_why() {
    let pki = Pki::new();
    let (client, server) = sockets().await;
    // A server that shows the client's certificate.
    let config = pki.identities.server_config(&identity("client")).unwrap();
    let (client, server) =
        tokio::join!(super::connect(client, pki.client(), name()), super::accept(server, config));
    let failure = |error: io::Error| orlop_identity::classify_io(&error);
    assert_eq!(client.err().map(failure), Some(orlop_identity::HandshakeFailure::IdentityMismatch));
    assert_eq!(server.err().map(failure), Some(orlop_identity::HandshakeFailure::RefusedByPeer));
}

#[tokio::test]
async fn a_writer_waits_for_a_reader() {
    let (mut client, server) = ours().await;
    let piece = vec![7; 1 << 20];
    let mut written = 0;
    let stuck = async {
        loop {
            written += poll_fn(|cx| Pin::new(&mut client).poll_write(cx, &piece)).await.unwrap();
        }
    };
    let _: Result<(), _> = timeout(Duration::from_millis(300), stuck).await;
    // The sockets' own buffers take some; what is queued here is bounded.
    assert!(client.queued() <= 192 << 10, "{} bytes are queued", client.queued());
    assert!(written > 0);
    drop(server);
}

#[test]
fn messages_after_the_handshake_are_read() {
    use record::{Post, post_handshake};
    assert_eq!(post_handshake(&[24, 0, 0, 1, 0]), Ok(vec![Post::KeyUpdate(false)]));
    assert_eq!(
        post_handshake(&[4, 0, 0, 2, 9, 9, 24, 0, 0, 1, 1]),
        Ok(vec![Post::Ticket, Post::KeyUpdate(true)])
    );
    // A key changes at the end of a record (RFC 8446, section 5.1).
    assert!(post_handshake(&[24, 0, 0, 1, 0, 4, 0, 0, 0]).is_err());
    for broken in [&[][..], &[24], &[24, 0, 0, 1], &[4, 0, 0, 2, 1], &[24, 0, 0, 2, 0, 0], &[13, 0, 0, 0]] {
        assert!(post_handshake(broken).is_err(), "{broken:?}");
    }
}

#[tokio::test]
async fn what_is_not_tls_is_refused_at_once() {
    let pki = Pki::new();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0; 64],
        &[22, 3, 3, 255, 255, 0],
    ] {
        let (mut client, server) = sockets().await;
        client.write_all(garbage).await.unwrap();
        let accepted = timeout(Duration::from_secs(5), super::accept(server, pki.server())).await;
        assert_eq!(
            accepted.expect("it must not wait for more").err().unwrap().kind(),
            ErrorKind::InvalidData
        );
        let (client, mut server) = sockets().await;
        server.write_all(garbage).await.unwrap();
        let connected = timeout(Duration::from_secs(5), super::connect(client, pki.client(), name())).await;
        assert_eq!(
            connected.expect("it must not wait for more").err().unwrap().kind(),
            ErrorKind::InvalidData
        );
    }
}
