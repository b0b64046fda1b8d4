//! `tls`

use std::sync::Arc;

use orlop_model::world::routing::{Roots, ServerCheck, ServerTls};
use serde::Deserialize;

use crate::field::{FieldError, FieldPath, Ignored};

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct TlsObject {
    /// DISABLE (if left out), SIMPLE, or ISTIO_MUTUAL. Waypoints have no certificates for MUTUAL, and refuse what would go there.
    mode: Option<String>,
    /// The name that is asked for; the host's if left out.
    sni: Option<String>,
    /// The server's certificate must have one of these names: the one that is asked for, if left out.
    subject_alt_names: Vec<String>,
    /// Believes any server.
    insecure_skip_verify: Option<bool>,
    /// A file of waypoints, which have none: they refuse what would go there.
    ca_certificates: Option<Ignored>,
    /// A Secret, which waypoints may not read: they refuse what would go there.
    credential_name: Option<Ignored>,
    /// A file of waypoints, which have none: they refuse what would go there.
    ca_crl: Option<Ignored>,
    /// A file of waypoints, which have none.
    client_certificate: Option<Ignored>,
    /// A file of waypoints, which have none.
    private_key: Option<Ignored>,
}

impl TlsObject {
    pub(super) fn convert(self, path: &FieldPath) -> Result<ServerTls, FieldError> {
        let unavailable = |field: &str, why: &str| {
            Ok(ServerTls::Unavailable(format!("{}: {why}", path.clone().key(field))))
        };
        const FILE: &str = "a waypoint has no such file";
        match self.mode.as_deref() {
            None | Some("DISABLE") => return Ok(ServerTls::Disable),
            Some("ISTIO_MUTUAL") => return Ok(ServerTls::Mesh),
            Some("MUTUAL") => return unavailable("mode", "a waypoint has no certificate for MUTUAL"),
            Some("SIMPLE") => {}
            Some(other) => {
                let problem = format!("{other:?} is not DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL");
                return Err(FieldError::new(path.clone().key("mode"), problem));
            }
        }
        if self.credential_name.is_some() {
            return unavailable("credentialName", "a waypoint may read no Secret");
        }
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
        let anybody = self.insecure_skip_verify == Some(true);
        Ok(ServerTls::Simple(Arc::new(ServerCheck {
            sni: self.sni.filter(|sni| !sni.is_empty()),
            names: self.subject_alt_names,
            roots: if anybody { Roots::Anybody } else { Roots::Public },
        })))
    }
}
