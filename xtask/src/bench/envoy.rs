//! An Envoy in a pod: as an HTTP proxy to compare with, or as what carries connections to it by mutual TLS.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use orlop_tests::{Pod, Process, wait_for};
use serde_json::{Value, json};

use super::rig::{HTTP_PORT, HTTP2_PORT};
use super::scale::large;

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";
const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const START: Duration = Duration::from_secs(20);

/// What an Envoy does with a connection.
#[derive(Clone, Copy)]
pub(super) enum Does {
    /// Reads its requests, and finds each in this many routes, of which the last one matches. It also knows endpoints of
    /// other clusters, ten of each.
    Http { routes: usize, endpoints: usize },
    /// Carries it as it is.
    Tcp,
}

/// The way through an Envoy of what comes for [`HTTP_PORT`] and [`HTTP2_PORT`], which goes on to the same port.
pub(super) struct Way<'a> {
    pub(super) does: Does,
    pub(super) to: IpAddr,
    /// Mutual TLS with who connects.
    pub(super) opens: Option<&'a KeyPair>,
    /// Mutual TLS with `to`.
    pub(super) seals: Option<&'a KeyPair>,
}

/// A certificate that signed itself, which all Envoys of a bench show and trust.
pub(super) struct KeyPair {
    certificate: PathBuf,
    key: PathBuf,
}

impl KeyPair {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let [certificate, key] = ["envoy.pem", "envoy.key"].map(|file| dir.join(file));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
            .args(["-days", "2", "-subj", "/CN=bench", "-addext", "subjectAltName=DNS:bench", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .stdin(Stdio::null())
            .output()
            .context("running openssl")?;
        if !made.status.success() {
            bail!("openssl made no certificate:\n{}", String::from_utf8_lossy(&made.stderr));
        }
        Ok(Self { certificate, key })
    }

    /// TLS 1.3 with the cipher that Orlop's tunnels use.
    fn context(&self) -> Value {
        json!({
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{
                "certificate_chain": {"filename": self.certificate},
                "private_key": {"filename": self.key},
            }],
            "validation_context": {"trusted_ca": {"filename": self.certificate}},
        })
    }
}

/// What `$ENVOY` names.
pub(super) fn binary() -> Result<Option<PathBuf>> {
    let Some(envoy) = std::env::var_os("ENVOY").map(PathBuf::from) else { return Ok(None) };
    if !envoy.is_file() {
        bail!("ENVOY={}: there is no such file", envoy.display());
    }
    Ok(Some(envoy))
}

/// Starts one with one worker in the pod, and waits until it listens.
pub(super) fn start(binary: &Path, pod: &Pod, dir: &Path, way: &Way<'_>) -> Result<Process> {
    let name = format!("envoy-{}.{}", pod.namespace(), pod.name());
    let config = dir.join(format!("{name}.json"));
    fs::write(&config, way.config().to_string()).with_context(|| format!("writing {}", config.display()))?;
    let log = dir.join(format!("{name}.log"));
    let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let mut command = pod.command(&binary.to_string_lossy())?;
    command
        .args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning", "-c"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("sharing the log")?)
        .stderr(output);
    let mut process = Process::spawn(&mut command)?;
    let listens =
        || !process.is_running() || pod.node().connect(pod.addr(HTTP_PORT), Duration::from_secs(1)).is_ok();
    if !wait_for(START, listens) || !process.is_running() {
        bail!("{name} does not listen; its log is:\n{}", fs::read_to_string(&log).unwrap_or_default());
    }
    Ok(process)
}

impl Way<'_> {
    fn config(&self) -> Value {
        let clusters = [self.cluster(HTTP_PORT), self.cluster(HTTP2_PORT)];
        let others = match self.does {
            Does::Http { endpoints, .. } => endpoints / large::ENDPOINTS,
            Does::Tcp => 0,
        };
        json!({"static_resources": {
            "listeners": [self.listener(HTTP_PORT), self.listener(HTTP2_PORT)],
            "clusters": clusters.into_iter().chain((0..others).map(other_cluster)).collect::<Vec<_>>(),
        }})
    }

    fn listener(&self, port: u16) -> Value {
        let mut chain = json!({"filters": [self.filter(port)]});
        if let Some(pair) = self.opens {
            chain["transport_socket"] = json!({"name": "tls", "typed_config": {
                "@type": format!("{TLS}.DownstreamTlsContext"),
                "require_client_certificate": true,
                "common_tls_context": pair.context(),
            }});
        }
        let listens = (IpAddr::from([0, 0, 0, 0]), port).into();
        json!({"name": cluster(port), "address": address(listens), "filter_chains": [chain]})
    }

    fn cluster(&self, port: u16) -> Value {
        let mut cluster = json!({
            "name": cluster(port),
            "type": "STATIC",
            "lb_policy": "LEAST_REQUEST",
            "circuit_breakers": {"thresholds": [{"max_connections": 100_000, "max_requests": 100_000}]},
            "load_assignment": {"cluster_name": cluster(port), "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": address((self.to, port).into())}},
            ]}]},
        });
        if port == HTTP2_PORT {
            cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }});
        }
        if let Some(pair) = self.seals {
            cluster["transport_socket"] = json!({"name": "tls", "typed_config": {
                "@type": format!("{TLS}.UpstreamTlsContext"),
                "sni": "bench",
                "common_tls_context": pair.context(),
            }});
        }
        cluster
    }

    fn filter(&self, port: u16) -> Value {
        match self.does {
            Does::Tcp => json!({"name": "tcp", "typed_config": {
                "@type": format!("{FILTERS}.network.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": "in",
                "cluster": cluster(port),
            }}),
            Does::Http { routes, .. } => {
                let route = |prefix: String| json!({"match": {"prefix": prefix}, "route": {"cluster": cluster(port)}});
                let others = (1..routes).map(|n| route(other_prefix(n)));
                let routes: Vec<_> = others.chain([route("/".to_owned())]).collect();
                json!({"name": "http", "typed_config": {
                    "@type": format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"),
                    "stat_prefix": "in",
                    "route_config": {"virtual_hosts": [
                        {"name": "all", "domains": ["*"], "routes": routes},
                    ]},
                    "http_filters": [{"name": "router", "typed_config": {
                        "@type": format!("{FILTERS}.http.router.v3.Router"),
                    }}],
                }})
            }
        }
    }
}

/// A cluster of endpoints that nobody asks for.
fn other_cluster(n: usize) -> Value {
    let endpoint = |of: usize| {
        let at = Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() + of as u32);
        json!({"endpoint": {"address": address((at, HTTP_PORT).into())}})
    };
    let all = n * large::ENDPOINTS..(n + 1) * large::ENDPOINTS;
    json!({
        "name": format!("other-{n}"),
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": format!("other-{n}"),
            "endpoints": [{"lb_endpoints": all.map(endpoint).collect::<Vec<_>>()}],
        },
    })
}

/// A prefix of paths that nobody asks for.
pub(super) fn other_prefix(n: usize) -> String {
    format!("/other/{n}/")
}

fn cluster(port: u16) -> String {
    format!("server-{port}")
}

fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}
