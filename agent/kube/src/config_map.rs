//! ConfigMap: the certificates in it.

use std::collections::BTreeMap;

use orlop_model::world::ConfigMap;
use orlop_model::world::config_map::{COPIES, KEY, MAX_CONFIG_MAPS, MAX_COPIES};
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
    let certificates = if *name.name == *COPIES {
        copies(data.take(MAX_CONFIG_MAPS))
    } else {
        let own = data.filter(|(key, _)| key == KEY);
        own.map(|(key, text)| (key, certificates(text))).collect()
    };
    Ok(ConfigMap { name, certificates })
}

/// Whoever has written them: more than a controller would copy is not kept.
fn copies(data: impl Iterator<Item = (String, String)>) -> BTreeMap<String, Result<Pem, String>> {
    let mut room = MAX_COPIES;
    let found = data.map(|(key, text)| match room.checked_sub(key.len() + text.len()) {
        Some(left) => {
            room = left;
            (key, certificates(text))
        }
        None => {
            (key, Err(format!("the certificates of its namespace have no room in {} KiB", MAX_COPIES >> 10)))
        }
    });
    found.collect()
}

/// One that is none spoils them all: whom its author wants believed besides, nobody can tell. Why it is none is not told in
/// a parser's words, which repeat what it has read, however long that is.
fn certificates(text: String) -> Result<Pem, String> {
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        count += 1;
        let is_one = certificate.is_ok_and(|certificate| anchor_from_trusted_cert(&certificate).is_ok());
        if !is_one {
            return Err(format!("number {count} in its ca.crt is no certificate in PEM"));
        }
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
    fn of_what_is_none_nothing_is_repeated() {
        for text in
            [format!("-----BEGIN {}", "z".repeat(1 << 20)), "-----BEGIN CERTIFICATE-----\n?".to_owned()]
        {
            let why = certificates(text).unwrap_err();
            assert!(why.len() < 100 && !why.contains('z'), "{why}");
        }
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
        // What has no room takes none from others.
        let long = own.repeat(MAX_COPIES / own.len());
        assert_eq!(
            converted(COPIES, json!({"a": own, "b": long, "c": own})),
            [("a".to_owned(), true), ("b".to_owned(), false), ("c".to_owned(), true)]
        );
        let many: BTreeMap<_, _> = (0..=MAX_CONFIG_MAPS).map(|index| (index.to_string(), "")).collect();
        assert_eq!(converted(COPIES, json!(many)).len(), MAX_CONFIG_MAPS);
    }
}
