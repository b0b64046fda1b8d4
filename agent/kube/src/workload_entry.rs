use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use orlop_model::world::{Backend, BackendAddress, Locality, WorkloadEntry};
use serde::Deserialize;

use crate::field::{FieldError, FieldPath, address, host, port};
use crate::metadata::{namespaced, subdomain};
use crate::read::Metadata;

/// A `networking.istio.io` WorkloadEntry as it is written.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: BackendObject,
}

/// A WorkloadEntry's `spec`, which is also an entry of a ServiceEntry's `endpoints`. A misspelt field would send
/// connections elsewhere, so none is let pass.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct BackendObject {
    /// Its address, or a name for DNS.
    address: Option<String>,
    /// Its ports by the names of the service's, if they are others.
    ports: Option<BTreeMap<String, i32>>,
    /// Labels by which it is selected.
    labels: Option<BTreeMap<String, String>>,
    /// Where it is, as REGION/ZONE/SUBZONE.
    locality: Option<String>,
    /// The service account whose identity it has.
    service_account: Option<String>,
    /// The network that it is in.
    network: Option<String>,
    /// Its share, relative to the others.
    weight: Option<u32>,
}

/// Converts a WorkloadEntry.
pub(crate) fn convert(object: Object) -> Result<WorkloadEntry, FieldError> {
    let name = namespaced(&object.metadata)?;
    let mut backend = backend(object.spec, &"spec".into())?;
    let of_object = object.metadata.labels.unwrap_or_default();
    backend.labels = of_object.iter().chain(backend.labels.iter()).collect();
    Ok(WorkloadEntry { name, backend })
}

/// Converts the part that ServiceEntries have as well; `path` leads to it.
pub(crate) fn backend(object: BackendObject, path: &FieldPath) -> Result<Backend, FieldError> {
    let account = object.service_account.filter(|account| !account.is_empty());
    let service_account = account.unwrap_or_else(|| "default".to_owned());
    subdomain(&service_account, &path.clone().key("serviceAccount").to_string())?;
    let ports = object.ports.unwrap_or_default().into_iter().map(|(name, number)| {
        let number = port(number, || path.clone().key("ports").key(&name))?;
        Ok((name, number))
    });
    Ok(Backend {
        address: backend_address(object.address.as_deref().unwrap_or_default(), path.clone().key("address"))?,
        ports: ports.collect::<Result<_, _>>()?,
        labels: object.labels.into_iter().flatten().collect(),
        locality: locality(object.locality.as_deref().unwrap_or_default()),
        service_account,
        weight: object.weight.and_then(NonZeroU32::new),
        network: object.network.filter(|network| !network.is_empty()),
    })
}

fn backend_address(text: &str, path: FieldPath) -> Result<BackendAddress, FieldError> {
    if text.is_empty() {
        return Err(FieldError::new(path, "is missing; write an IP address or a host name"));
    }
    if text.starts_with("unix:") {
        return Err(FieldError::new(
            path,
            "is a socket of the file system, which can't be reached from a pod",
        ));
    }
    if text.parse::<IpAddr>().is_ok() {
        return address(text, || path).map(BackendAddress::Ip);
    }
    host(text, || path).map(BackendAddress::Host)
}

/// `REGION/ZONE/SUBZONE`, of which the last ones may be missing.
fn locality(text: &str) -> Locality {
    let mut parts = text.split('/').map(|part| (!part.is_empty()).then(|| part.into()));
    let mut next = || parts.next().flatten();
    Locality { region: next(), zone: next(), subzone: next() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn everything_the_mesh_reads_is_carried_over() {
        let entry = entry(json!({
            "address": "192.0.2.1", "ports": {"http": 8080}, "labels": {"app": "vm"}, "network": "", "weight": 3,
            "locality": "eu/eu-1a/rack", "serviceAccount": "vm",
        }))
        .unwrap();
        assert_eq!(entry.name.to_string(), "shop/vm");
        let backend = entry.backend;
        assert_eq!(backend.address, BackendAddress::Ip("192.0.2.1".parse().unwrap()));
        assert_eq!((backend.ports["http"], backend.service_account.as_str()), (8080, "vm"));
        assert_eq!(backend.labels, [("app", "vm"), ("of", "object")].into());
        let [region, zone, subzone] = ["eu", "eu-1a", "rack"].map(|part| Some(part.into()));
        assert_eq!(backend.locality, Locality { region, zone, subzone });
    }

    #[test]
    fn a_host_name_is_an_address_too() {
        let entry = entry(json!({"address": "VM.example.com."})).unwrap();
        assert_eq!(entry.backend.address, BackendAddress::Host("vm.example.com".into()));
        assert_eq!(entry.backend.service_account, "default");
    }

    #[test]
    fn wrong_fields_are_named() {
        let named = |spec| entry(spec).unwrap_err().path.to_string();
        for address in [json!(null), json!(""), json!("a b"), json!("127.0.0.1"), json!("unix:///run/x")] {
            assert_eq!(named(json!({"address": address})), "spec.address", "{address}");
        }
        assert_eq!(named(json!({"address": "vm", "ports": {"http": 0}})), "spec.ports.http");
        assert_eq!(named(json!({"address": "vm", "serviceAccount": "a/b"})), "spec.serviceAccount");
    }

    fn entry(spec: Value) -> Result<WorkloadEntry, FieldError> {
        let metadata =
            json!({"name": "vm", "namespace": "shop", "labels": {"app": "object", "of": "object"}});
        let object = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": metadata, "spec": spec,
        });
        convert(serde_json::from_value(object).unwrap())
    }
}
