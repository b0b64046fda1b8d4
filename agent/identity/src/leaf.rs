//! What a certificate says about itself, read once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

/// The fields of a certificate that identity rests on. Says nothing about who signed it.
pub(crate) struct Leaf {
    pub(crate) uris: Vec<String>,
    pub(crate) server_auth: bool,
    pub(crate) client_auth: bool,
    pub(crate) ca: bool,
    /// Its subject is its issuer: a root.
    pub(crate) self_issued: bool,
    pub(crate) signs_certificates: bool,
    pub(crate) public_key: Vec<u8>,
    pub(crate) serial: String,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Leaf {
    /// Reads `der`. Anything doubtful (trailing bytes, an extension given twice, a name that can't
    /// be read) is an error: another parser may see something else there.
    pub(crate) fn read(der: &CertificateDer<'_>) -> Result<Self, String> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err("bytes follow the certificate".to_owned());
        }
        let invalid = |error: x509_parser::error::X509Error| error.to_string();
        let names = certificate.subject_alternative_name().map_err(invalid)?;
        let purposes = certificate.extended_key_usage().map_err(invalid)?;
        let usage = certificate.key_usage().map_err(invalid)?;
        let constraints = certificate.basic_constraints().map_err(invalid)?;
        Ok(Self {
            uris: names.map_or(Ok(Vec::new()), |names| uris(&names.value.general_names))?,
            server_auth: purposes.as_ref().is_some_and(|purposes| purposes.value.server_auth),
            client_auth: purposes.as_ref().is_some_and(|purposes| purposes.value.client_auth),
            ca: constraints.is_some_and(|constraints| constraints.value.ca),
            self_issued: certificate.subject().as_raw() == certificate.issuer().as_raw(),
            signs_certificates: usage.is_some_and(|usage| usage.value.key_cert_sign()),
            public_key: certificate.public_key().raw.to_vec(),
            serial: hex(certificate.raw_serial()),
            not_before: system_time(certificate.validity().not_before.timestamp()),
            not_after: system_time(certificate.validity().not_after.timestamp()),
        })
    }
}

/// A serial number in hex, with or without colons between its bytes; `None` if it is something else.
pub fn parse_serial(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| *byte != b':')
        .map(|byte| char::from(byte).to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    // RFC 5280, 4.1.2.2: at most 20 bytes, and one for the sign.
    let whole = !digits.is_empty() && digits.len().is_multiple_of(2) && digits.len() <= 42;
    whole.then(|| unsigned(&digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect::<Vec<_>>()).to_vec())
}

/// The serial numbers of the certificates in a file: PEM, or one in DER.
pub fn serials_in(content: &[u8]) -> Option<Vec<Vec<u8>>> {
    let pem: Vec<CertificateDer<'_>> =
        CertificateDer::pem_slice_iter(content).collect::<Result<_, _>>().ok()?;
    let certificates = if pem.is_empty() { vec![CertificateDer::from(content)] } else { pem };
    certificates.iter().map(|certificate| parse_serial(&Leaf::read(certificate).ok()?.serial)).collect()
}

/// The serial numbers that a revocation list holds, and when each was revoked.
pub(crate) fn revoked_serials(list: &[u8]) -> Result<Vec<(Vec<u8>, SystemTime)>, String> {
    let (_, list) = CertificateRevocationList::from_der(list).map_err(|error| error.to_string())?;
    let revoked = list.iter_revoked_certificates();
    Ok(revoked
        .map(|one| (unsigned(one.raw_serial()).to_vec(), system_time(one.revocation_date.timestamp())))
        .collect())
}

fn uris(names: &[GeneralName<'_>]) -> Result<Vec<String>, String> {
    let mut uris = Vec::new();
    for name in names {
        match name {
            GeneralName::URI(uri) => uris.push((*uri).to_owned()),
            GeneralName::Invalid(..) => return Err("a subject alternative name can't be read".to_owned()),
            _ => {}
        }
    }
    Ok(uris)
}

/// Lower-case, two digits a byte.
pub(crate) fn hex(serial: &[u8]) -> String {
    unsigned(serial).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Without the zero byte that DER puts before a set top bit.
fn unsigned(serial: &[u8]) -> &[u8] {
    match serial {
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    }
}

fn system_time(timestamp: i64) -> SystemTime {
    let distance = Duration::from_secs(timestamp.unsigned_abs());
    let time =
        if timestamp < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}
