//! A CA that a ztunnel can ask: `IstioCertificateService` over gRPC, signing with a testbed's embedded CA.
//!
//! `istio-ca CA_DIR PORT ROOT`: listens on the loopback, and writes to `ROOT` the certificate that its own TLS has to
//! be verified with, once it listens. It believes whoever asks: for tests and the bench alone.

use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response};
use orlop_identity::{CertificateAuthority as _, DEFAULT_LIFETIME, EmbeddedCa, provider};
use orlop_model::Identity;
use orlop_tests::protobuf::{field, first_field};
use pem::Pem;
use rcgen::{CertificateSigningRequestParams, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateSigningRequestDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, port, root] = args.as_slice() else { bail!("usage: istio-ca CA_DIR PORT ROOT") };
    let authority = Arc::new(Authority::open(Path::new(dir))?);
    let (tls, certificate) = tls()?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port.parse().context("PORT")?)).await?;
    let unfinished = format!("{root}.new");
    fs::write(&unfinished, certificate).with_context(|| format!("writing {unfinished}"))?;
    fs::rename(&unfinished, root).with_context(|| format!("writing {root}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (tls, authority) = (tls.clone(), Arc::clone(&authority));
        tokio::spawn(async move {
            if let Err(error) = serve(stream, tls, &authority).await {
                eprintln!("istio-ca: {error:#}");
            }
        });
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, authority: &Authority) -> Result<()> {
    let mut connection = h2::server::handshake(tls.accept(stream).await?).await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        let authority = authority.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(request.into_body(), respond, &authority).await {
                eprintln!("istio-ca: {error:#}");
            }
        });
    }
    Ok(())
}

/// One call of `CreateCertificate`: a length-prefixed message each way, and a status in the trailers.
async fn answer(mut body: RecvStream, mut respond: SendResponse<Bytes>, authority: &Authority) -> Result<()> {
    let mut request = BytesMut::new();
    while let Some(data) = body.data().await {
        request.extend_from_slice(&data?);
    }
    // gRPC: a flag of one byte (not compressed), four of the length, the message.
    let chain = authority.sign(request.get(5..).context("a request without a message")?)?;
    let message: Vec<u8> = chain.iter().flat_map(|pem| field(1, pem.as_bytes())).collect();
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len())?);
    framed.put_slice(&message);

    let head = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut stream = respond.send_response(head, false)?;
    stream.send_data(framed.freeze(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)?;
    Ok(())
}

#[derive(Clone)]
struct Authority {
    ca: Arc<EmbeddedCa>,
    root: String,
}

impl Authority {
    fn open(dir: &Path) -> Result<Self> {
        let ca = EmbeddedCa::open(dir, &"cluster.local".parse()?)?;
        let root = fs::read_to_string(dir.join("root-cert.pem")).context("reading the root certificate")?;
        Ok(Self { ca: Arc::new(ca), root })
    }

    /// `IstioCertificateRequest { csr = 1 }` to the certificates, leaf first and root last, as PEM.
    fn sign(&self, request: &[u8]) -> Result<Vec<String>> {
        let request =
            CertificateSigningRequestDer::from_pem_slice(first_field(1, request).context("no CSR")?)?;
        let names = CertificateSigningRequestParams::from_der(&request)?.params.subject_alt_names;
        let [SanType::URI(name)] = names.as_slice() else { bail!("a request for {names:?}") };
        let identity: Identity = name.as_str().parse()?;
        let chain = self.ca.issue(&identity, &request, DEFAULT_LIFETIME, SystemTime::now())?;
        let mut chain: Vec<String> = chain
            .certificates
            .iter()
            .map(|der| pem::encode(&Pem::new("CERTIFICATE", der.as_ref())))
            .collect();
        chain.push(self.root.clone());
        Ok(chain)
    }
}

/// TLS as `localhost`, and the certificate it shows.
fn tls() -> Result<(TlsAcceptor, String)> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key: &KeyPair = &made.signing_key;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), made.cert.pem()))
}
