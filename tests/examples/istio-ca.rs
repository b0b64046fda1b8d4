//! A CA that an agent or a ztunnel can ask: the certificate service of `orlop controller`, signing with a testbed's
//! embedded CA.
//!
//! `istio-ca CA_DIR PORT ROOT`: listens as `localhost`, and writes to `ROOT` the root that everybody is to trust, once
//! it listens. It believes whoever asks: for tests and the bench alone.

use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use orlop_identity::{
    Admission, CertificateService, DEFAULT_LIFETIME, EmbeddedCa, Gate, GivenCa, Refusal, ServingTls, Signer,
    Trust,
};
use orlop_model::{Identity, TrustDomain};
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, port, root] = args.as_slice() else { bail!("usage: istio-ca CA_DIR PORT ROOT") };
    let (dir, trust_domain): (_, TrustDomain) = (Path::new(dir), "cluster.local".parse()?);
    // Makes it, if there is none.
    EmbeddedCa::open(dir, &trust_domain)?;
    let read = |name: &str| fs::read(dir.join(name)).with_context(|| format!("reading {name}"));
    let (key, certificate) = (read("root-key.pem")?, read("root-cert.pem")?);
    let signer = Signer::from_pem(&key, &certificate, b"", &trust_domain, SystemTime::now())?;
    let ca = Arc::new(GivenCa::new(signer, Trust::from_pem(&certificate)?)?);
    let tls = ServingTls::new(Arc::clone(&ca), vec!["localhost".to_owned()])?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port.parse().context("PORT")?)).await?;
    let unfinished = format!("{root}.new");
    fs::write(&unfinished, certificate).with_context(|| format!("writing {unfinished}"))?;
    fs::rename(&unfinished, root).with_context(|| format!("writing {root}"))?;
    let service = CertificateService::new(ca, Arc::new(Open), DEFAULT_LIFETIME);
    Arc::new(service).serve(listener, move || tls.current()).await;
    Ok(())
}

/// Believes everybody.
struct Open;

impl Gate for Open {
    fn admit<'a>(&'a self, _: Option<&'a str>, wanted: Option<Identity>) -> Admission<'a> {
        Box::pin(async { wanted.ok_or_else(|| Refusal::Denied("ask for an identity".to_owned())) })
    }
}
