//! Asking for keys over HTTP, of whoever a RequestAuthentication names.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};

use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use orlop_model::http::Claim;
use orlop_model::json;
use orlop_model::world::{KeyPlace, KeySetError, MAX_KEY_SET};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::address;
use super::keys::KeySet;
use crate::provider;

/// Of an OpenID configuration.
const MAX_VALUES: usize = 2000;
/// Of an answer's head.
const MAX_HEAD: usize = 64 << 10;

/// Finds the addresses of a host.
pub type Resolve = Arc<dyn Fn(String) -> Resolving + Send + Sync>;
/// What becomes of it.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Why keys can't be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a URL that can be asked.
    #[error("{0} is no URL that can be asked")]
    Url(String),
    /// The name is not known.
    #[error("{host} has no address: {source}")]
    Unresolved {
        /// The host.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// The name leads where nobody must be asked.
    #[error("{host} is at {address}, which {why}: keys are not asked for there")]
    Address {
        /// The host.
        host: String,
        /// One of its addresses.
        address: IpAddr,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nobody there, or not who it should be.
    #[error("{host} can't be asked: {problem}")]
    Connection {
        /// The host.
        host: String,
        /// Why.
        problem: String,
    },
    /// Redirects are not followed: they would lead anywhere.
    #[error("{url} answers with status {status}; it must be 200")]
    Status {
        /// What was asked for.
        url: String,
        /// What came.
        status: StatusCode,
    },
    /// Too long an answer, or not all of it.
    #[error("{url} answers with more than {MAX_KEY_SET} bytes, or breaks off")]
    Body {
        /// What was asked for.
        url: String,
    },
    /// Not keys.
    #[error("{url} answers with what is no key set: {source}")]
    Keys {
        /// What was asked for.
        url: String,
        /// Why.
        source: KeySetError,
    },
    /// Not what leads to keys.
    #[error("{url} answers with what is no OpenID configuration of this issuer: it {problem}")]
    Configuration {
        /// What was asked for.
        url: String,
        /// Why.
        problem: String,
    },
}

/// Reads certificates of roots from a PEM file.
pub fn read_roots(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let text = fs::read(file)?;
    let roots: Vec<_> =
        CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(io::Error::other)?;
    if roots.is_empty() {
        return Err(io::Error::other("there is no certificate in it"));
    }
    Ok(roots)
}

pub(super) struct Fetcher {
    resolve: Resolve,
    tls: Arc<ClientConfig>,
    /// Addresses of the node, which are asked for nothing.
    own: RwLock<Vec<IpAddr>>,
}

impl Fetcher {
    /// Servers are believed whose certificates lead to one of the public roots, or of these.
    pub fn new(
        resolve: Resolve,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, rustls::Error> {
        let mut store = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        for root in roots {
            store.add(root)?;
        }
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let mut config = config.with_root_certificates(store).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { resolve, tls: Arc::new(config), own: RwLock::default() })
    }

    pub fn set_own(&self, addresses: Vec<IpAddr>) {
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// The keys as they are now.
    pub async fn keys(&self, place: &KeyPlace) -> Result<KeySet, FetchError> {
        let url = match place {
            KeyPlace::Uri(url) => url.clone(),
            KeyPlace::Issuer(issuer) => self.discover(issuer).await?,
        };
        let text = self.get(&url).await?;
        KeySet::read(&text).map_err(|source| FetchError::Keys { url, source })
    }

    /// Where an issuer has its keys.
    async fn discover(&self, issuer: &str) -> Result<String, FetchError> {
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let text = self.get(&url).await?;
        let wrong = |problem: String| FetchError::Configuration { url: url.clone(), problem };
        let configuration = json::object(&text, MAX_VALUES).map_err(wrong)?;
        // OpenID Connect Discovery 1.0, section 4.3.
        if configuration.get("issuer") != Some(&Claim::Text(issuer.to_owned())) {
            return Err(wrong("names another issuer".to_owned()));
        }
        match configuration.get("jwks_uri") {
            Some(Claim::Text(keys)) if keys.starts_with("https://") || !url.starts_with("https://") => {
                Ok(keys.clone())
            }
            Some(Claim::Text(_)) => Err(wrong("would have keys come in clear".to_owned())),
            _ => Err(wrong("has no jwks_uri".to_owned())),
        }
    }

    async fn get(&self, url: &str) -> Result<Bytes, FetchError> {
        let wrong = || FetchError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|of| !of.as_str().contains('@')).ok_or_else(wrong)?;
        let (is_https, port) = match uri.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => return Err(wrong()),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let tcp = self.connect(&host, authority.port_u16().unwrap_or(port)).await?;
        let failed =
            |problem: &dyn Error| FetchError::Connection { host: host.clone(), problem: chain(problem) };
        if !is_https {
            return ask(tcp, &uri, url, failed).await;
        }
        let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
        let tls = TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await;
        ask(tls.map_err(|error| failed(&error))?, &uri, url, failed).await
    }

    /// What is dialled is an address that was looked at, not a name that may lead elsewhere a moment later.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, FetchError> {
        let unresolved = |source| FetchError::Unresolved { host: host.to_owned(), source };
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => (self.resolve)(host.to_owned()).await.map_err(unresolved)?,
        };
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut failed = unresolved(io::ErrorKind::NotFound.into());
        for address in addresses {
            let why = address::refused(address, &own);
            if let Some(why) = why.or_else(|| is_here(address).then_some("is of the node itself")) {
                failed = FetchError::Address { host: host.to_owned(), address, why };
                continue;
            }
            match TcpStream::connect(SocketAddr::new(address, port)).await {
                Ok(tcp) => return Ok(tcp),
                Err(error) => {
                    failed = FetchError::Connection { host: host.to_owned(), problem: error.to_string() };
                }
            }
        }
        Err(failed)
    }
}

/// Whether what is sent there would come back here, whatever addresses the node is known to have. Nothing is sent.
fn is_here(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let local = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    // Without a way there, dialling it says why.
    local.is_ok_and(|local| local.ip().to_canonical() == address.to_canonical())
}

/// One request, and all of its answer.
async fn ask<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    uri: &Uri,
    url: &str,
    failed: impl Fn(&dyn Error) -> FetchError,
) -> Result<Bytes, FetchError> {
    let handshake = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| failed(&error))?;
    // Ends with this.
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(HOST, authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, "orlop")
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|_| FetchError::Url(url.to_owned()))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    if answer.status() != StatusCode::OK {
        return Err(FetchError::Status { url: url.to_owned(), status: answer.status() });
    }
    let body = Limited::new(answer.into_body(), MAX_KEY_SET).collect().await;
    body.map(|body| body.to_bytes()).map_err(|_| FetchError::Body { url: url.to_owned() })
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(url: &str, addresses: &[&str], own: &[&str]) -> FetchError {
        let parsed = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let addresses = parsed(addresses);
        let resolve = move |_: String| -> Resolving { Box::pin(std::future::ready(Ok(addresses.clone()))) };
        let fetcher = Fetcher::new(Arc::new(resolve), []).unwrap();
        fetcher.set_own(parsed(own));
        fetcher.keys(&KeyPlace::Uri(url.to_owned())).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_name_or_number_that_leads_to_the_node_is_not_dialled() {
        for url in [
            "http://127.0.0.1/",
            "http://[::1]:15000/config_dump",
            "http://[::ffff:127.0.0.1]/",
            "https://169.254.169.254/latest/meta-data",
            "http://0.0.0.0:80/",
        ] {
            let error = asked(url, &[], &[]).await;
            assert!(matches!(error, FetchError::Address { .. }), "{url}: {error}");
        }
        for address in ["127.0.0.1", "169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "192.0.2.1"] {
            for url in [
                "http://rebound.example/",
                "https://rebound.example/",
                "http://localhost/",
                "http://2130706433/",
            ] {
                let error = asked(url, &[address], &["192.0.2.1"]).await;
                assert!(matches!(error, FetchError::Address { .. }), "{url} {address}: {error}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_url_is_not_asked() {
        for url in
            ["", "a", "/keys", "file:///etc/passwd", "ftp://10.0.0.1/", "http://user@10.0.0.1/", "http://"]
        {
            let error = asked(url, &["10.0.0.1"], &[]).await;
            assert!(matches!(error, FetchError::Url(_)), "{url}: {error}");
        }
        assert!(matches!(asked("http://a/", &[], &[]).await, FetchError::Unresolved { .. }));
    }
}
