//! Istio's certificate service, `istio.v1.auth.IstioCertificateService`, from both ends.

mod client;
mod server;

pub use client::{CaAddress, RemoteCa};
pub use server::{Admission, CertificateService, Gate, Refusal};

use std::collections::BTreeMap;

use prost::Message;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls::pki_types::CertificateDer;

/// The one call of the service.
const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// `istio.v1.auth.IstioCertificateRequest`.
#[derive(Clone, PartialEq, Message)]
struct Request {
    /// PKCS#10, PEM.
    #[prost(string, tag = "1")]
    csr: String,
    /// In seconds.
    #[prost(int64, tag = "3")]
    validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    metadata: Option<Struct>,
}

/// `istio.v1.auth.IstioCertificateResponse`.
#[derive(Clone, PartialEq, Message)]
struct Response {
    /// PEM: leaf first, then one after the other what leads to a root, and at last every root in one string.
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}

/// Under which a node's agent says for which of its pods it asks.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

fn impersonating(identity: &str) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(identity.to_owned())) };
    Struct { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]) }
}

fn impersonated(metadata: &Struct) -> Option<&str> {
    match metadata.fields.get(IMPERSONATED_IDENTITY)?.kind.as_ref()? {
        Kind::StringValue(identity) => Some(identity),
        _ => None,
    }
}

/// One certificate as PEM.
pub(crate) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    pem::encode_config(
        &pem::Pem::new("CERTIFICATE", certificate.as_ref()),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}
