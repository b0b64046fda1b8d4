//! `tls` and `tcp` of a VirtualService.

use std::collections::BTreeMap;

use orlop_model::world::security::IpBlock;
use orlop_model::world::stream::{HostPattern, StreamMatch, StreamRule, WeightedStream};
use serde::Deserialize;

use super::{DestinationObject, any_host, destination};
use crate::field::{FieldError, FieldPath, port};

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsObject {
    /// What the rule is for: whatever one of these matches.
    #[serde(rename = "match")]
    matches: Vec<TlsMatchObject>,
    /// Where connections go, by weight.
    route: Vec<StreamRouteObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(super) struct TcpObject {
    /// What the rule is for: whatever one of these matches. Left out, every connection.
    #[serde(rename = "match")]
    matches: Vec<TcpMatchObject>,
    /// Where connections go, by weight.
    route: Vec<StreamRouteObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct TlsMatchObject {
    /// Names of servers as clients' TLS has them (SNI), such as example.com or *.example.com.
    sni_hosts: Vec<String>,
    /// Addresses or CIDR blocks that the connection is to.
    destination_subnets: Vec<String>,
    /// The port that is called.
    port: Option<i32>,
    /// Labels of the calling workload.
    source_labels: BTreeMap<String, String>,
    /// The namespace of the calling workload.
    source_namespace: Option<String>,
    /// Instead of the VirtualService's own gateways.
    gateways: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct TcpMatchObject {
    /// Addresses or CIDR blocks that the connection is to.
    destination_subnets: Vec<String>,
    /// The port that is called.
    port: Option<i32>,
    /// One address or CIDR block that the connection is from. A match with it is for nobody: it can't be read.
    source_subnet: Option<String>,
    /// Labels of the calling workload.
    source_labels: BTreeMap<String, String>,
    /// The namespace of the calling workload.
    source_namespace: Option<String>,
    /// Instead of the VirtualService's own gateways.
    gateways: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct StreamRouteObject {
    /// The service.
    destination: DestinationObject,
    /// Its share, relative to the others.
    weight: Option<i64>,
}

impl TlsObject {
    /// As of TCP.
    pub(super) fn of_gateways(&self, gateways: &[String]) -> Option<StreamRule> {
        of_gateways(gateways, self.matches.iter().map(|of| &of.gateways))
    }

    pub(super) fn convert(self, path: &FieldPath) -> Result<StreamRule, FieldError> {
        let at = path.clone().key("match");
        if self.matches.is_empty() {
            return Err(FieldError::new(at, "is missing; name hosts in sniHosts"));
        }
        let matches = self.matches.into_iter().enumerate().map(|(index, of)| {
            let path = at.clone().index(index);
            if of.sni_hosts.is_empty() {
                return Err(FieldError::new(path.key("sniHosts"), "is missing; name at least one host"));
            }
            of.convert(&path)
        });
        Ok(StreamRule { matches: matches.collect::<Result<_, _>>()?, route: route(self.route, path)? })
    }
}

impl TcpObject {
    /// Whether it is for gateways alone, as the VirtualService or all matches say: those may be read otherwise.
    pub(super) fn of_gateways(&self, gateways: &[String]) -> Option<StreamRule> {
        of_gateways(gateways, self.matches.iter().map(|of| &of.gateways))
    }

    pub(super) fn convert(self, path: &FieldPath) -> Result<StreamRule, FieldError> {
        let matches = self.matches.into_iter().enumerate().map(|(index, of)| {
            let path = path.clone().key("match").index(index);
            // Of whom it is for nobody knows, so it is for none: no namespace has this name.
            let nobody = of.source_subnet.as_ref().map(|_| String::new());
            let TcpMatchObject {
                destination_subnets, port, source_labels, source_namespace, gateways, ..
            } = of;
            let sni_hosts = Vec::new();
            let of = TlsMatchObject {
                sni_hosts,
                destination_subnets,
                port,
                source_labels,
                source_namespace,
                gateways,
            };
            let of = of.convert(&path)?;
            Ok(StreamMatch { source_namespace: nobody.or(of.source_namespace), ..of })
        });
        Ok(StreamRule { matches: matches.collect::<Result<_, _>>()?, route: route(self.route, path)? })
    }
}

impl TlsMatchObject {
    fn convert(self, path: &FieldPath) -> Result<StreamMatch, FieldError> {
        let hosts = self.sni_hosts.iter().enumerate();
        let names = hosts.map(|(index, text)| {
            any_host(text, || path.clone().key("sniHosts").index(index)).map(HostPattern)
        });
        Ok(StreamMatch {
            names: names.collect::<Result<_, _>>()?,
            destinations: blocks(&self.destination_subnets, path)?,
            port: self.port.map(|number| port(number, || path.clone().key("port"))).transpose()?,
            source_labels: self.source_labels.into_iter().collect(),
            source_namespace: self.source_namespace.filter(|namespace| !namespace.is_empty()),
            gateways: self.gateways,
        })
    }
}

/// What stands for a rule that is for gateways alone.
fn of_gateways<'o>(gateways: &'o [String], own: impl Iterator<Item = &'o Vec<String>>) -> Option<StreamRule> {
    let mut named: Vec<_> = own.map(|own| if own.is_empty() { gateways } else { own }).collect();
    if named.is_empty() {
        named.push(gateways);
    }
    let is_mesh = |gateways: &[String]| gateways.is_empty() || gateways.iter().any(|name| name == "mesh");
    let matches =
        named.iter().map(|gateways| StreamMatch { gateways: gateways.to_vec(), ..StreamMatch::default() });
    (!named.iter().any(|gateways| is_mesh(gateways)))
        .then(|| StreamRule { matches: matches.collect(), route: Vec::new() })
}

fn blocks(texts: &[String], path: &FieldPath) -> Result<Vec<IpBlock>, FieldError> {
    let texts = texts.iter().enumerate();
    let blocks = texts.map(|(index, text)| {
        text.parse().map_err(|error: orlop_model::world::security::IpBlockError| {
            FieldError::new(path.clone().key("destinationSubnets").index(index), error.to_string())
        })
    });
    blocks.collect()
}

fn route(route: Vec<StreamRouteObject>, path: &FieldPath) -> Result<Vec<WeightedStream>, FieldError> {
    let path = path.clone().key("route");
    if route.is_empty() {
        return Err(FieldError::new(path, "is missing; name a destination"));
    }
    let single = route.len() == 1;
    let mut found = Vec::new();
    for (index, entry) in route.into_iter().enumerate() {
        let path = path.clone().index(index);
        let weight = super::weight(entry.weight, single, || path.clone().key("weight"))?;
        found.push(WeightedStream {
            destination: destination(entry.destination, &path.key("destination"))?,
            weight,
        });
    }
    if found.iter().all(|entry| entry.weight == 0) {
        return Err(FieldError::new(path, "has no weight but 0; give one of them some"));
    }
    Ok(found)
}
