//! ConfigMap: the certificates in it.

use std::collections::BTreeMap;

use orlop_model::world::ConfigMap;
use orlop_model::world::config_map::{COPIES, KEY};
use orlop_model::world::routing::Pem;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use webpki::anchor_from_trusted_cert;

use crate::field::FieldError;
use crate::metadata::namespaced;
use crate::read::Metadata;

/// A ConfigMap as it is written.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    metadata: Metadata,
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
}

/// Converts a ConfigMap. What else it has is not kept.
pub(crate) fn convert(object: Object) -> Result<ConfigMap, FieldError> {
    let name = namespaced(&object.metadata)?;
    let data = object.data.into_iter().flatten();
    let wanted = data.filter(|(key, _)| key == KEY || *name.name == *COPIES);
    let certificates = wanted.map(|(key, text)| (key, certificates(text))).collect();
    Ok(ConfigMap { name, certificates })
}

/// One that is none spoils them all: whom its author wants believed besides, nobody can tell.
fn certificates(text: String) -> Result<Pem, String> {
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("its ca.crt is no PEM: {error}"))?;
        anchor_from_trusted_cert(&certificate)
            .map_err(|error| format!("its ca.crt has a certificate that is none: {error}"))?;
        count += 1;
    }
    if count == 0 {
        return Err("its ca.crt has no certificate in PEM".to_owned());
    }
    Ok(Pem::from(text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn converted(name: &str, data: serde_json::Value) -> Vec<(String, bool)> {
        let object = json!({"metadata": {"name": name, "namespace": "shop"}, "data": data});
        let of = convert(serde_json::from_value(object).unwrap()).unwrap();
        of.certificates.into_iter().map(|(key, found)| (key, found.is_ok())).collect()
    }

    #[test]
    fn certificates_alone_are_kept() {
        let key = rcgen::KeyPair::generate().unwrap();
        let own = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().pem();
        let spoilt = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let all = format!("{own}{own}");
        for (text, good) in
            [(&own, true), (&all, true), (&format!("{own}{spoilt}"), false), (&String::new(), false)]
        {
            let found = converted("ca", json!({"ca.crt": text, "password": "secret"}));
            assert_eq!(found, [("ca.crt".to_owned(), good)], "{text}");
        }
        assert_eq!(converted("ca", json!({"other": own})), []);
        assert_eq!(converted("ca", json!(null)), []);
        // Each is the copy of another.
        assert_eq!(
            converted(COPIES, json!({"a": own, "b": key.serialize_pem()})),
            [("a".to_owned(), true), ("b".to_owned(), false)]
        );
    }
}
