//! `tls`

use std::sync::Arc;

use orlop_model::NamespacedName;
use orlop_model::world::routing::{Credential, Roots, ServerCheck, ServerTls};
use serde::Deserialize;

use crate::field::{FieldError, FieldPath, Ignored};

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct TlsObject {
    /// DISABLE (if left out), SIMPLE, MUTUAL (by credentialName), or ISTIO_MUTUAL.
    mode: Option<String>,
    /// The name that is asked for; the host's if left out.
    sni: Option<String>,
    /// The server's certificate must have one of these names: the one that is asked for, if left out.
    subject_alt_names: Vec<String>,
    /// Believes any server.
    insecure_skip_verify: Option<bool>,
    /// A file of waypoints, which have none: they refuse what would go there.
    ca_certificates: Option<Ignored>,
    /// A Secret of the rule's namespace, which waypoints and gateways of that have: with whose ca.crt the server's certificate is signed and, of MUTUAL, whose tls.crt is shown.
    credential_name: Option<String>,
    /// A file of waypoints, which have none: they refuse what would go there.
    ca_crl: Option<Ignored>,
    /// A file of waypoints, which have none.
    client_certificate: Option<Ignored>,
    /// A file of waypoints, which have none.
    private_key: Option<Ignored>,
}

impl TlsObject {
    pub(super) fn convert(self, namespace: &str, path: &FieldPath) -> Result<ServerTls, FieldError> {
        let unavailable = |field: &str, why: &str| {
            Ok(ServerTls::Unavailable(format!("{}: {why}", path.clone().key(field))))
        };
        const FILE: &str = "a waypoint has no such file";
        let shown = match self.mode.as_deref() {
            None | Some("DISABLE") => return Ok(ServerTls::Disable),
            Some("ISTIO_MUTUAL") => return Ok(ServerTls::Mesh),
            Some("MUTUAL") => true,
            Some("SIMPLE") => false,
            Some(other) => {
                let problem = format!("{other:?} is not DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL");
                return Err(FieldError::new(path.clone().key("mode"), problem));
            }
        };
        for (field, there) in [
            ("caCertificates", self.ca_certificates.is_some()),
            ("caCrl", self.ca_crl.is_some()),
            ("clientCertificate", self.client_certificate.is_some()),
            ("privateKey", self.private_key.is_some()),
        ] {
            if there {
                return unavailable(field, FILE);
            }
        }
        let name = self.credential_name.filter(|name| !name.is_empty());
        if name.is_none() && shown {
            return unavailable("credentialName", "MUTUAL needs one");
        }
        if let Some(name) = &name
            && !is_secret(name)
        {
            let problem = format!("{name:?} is not the name of a Secret of its own namespace");
            return Err(FieldError::new(path.clone().key("credentialName"), problem));
        }
        let credential = name.map(|name| Credential { secret: NamespacedName::new(namespace, name), shown });
        let roots = match (self.insecure_skip_verify, &credential) {
            (Some(true), _) => Roots::Anybody,
            (_, Some(_)) => Roots::Credential,
            (_, None) => Roots::Public,
        };
        Ok(ServerTls::Simple(Arc::new(ServerCheck {
            sni: self.sni.filter(|sni| !sni.is_empty()),
            names: self.subject_alt_names,
            roots,
            credential,
        })))
    }
}

/// It becomes part of a path.
fn is_secret(name: &str) -> bool {
    let within = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    name.len() <= 253 && name.bytes().all(within) && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
}
