use std::collections::BTreeMap;
use std::time::Duration;

use orlop_model::world::security::Pattern;
use orlop_model::world::{BodyInCheck, ExtensionProvider, HttpCheck, Speaks};
use serde::Deserialize;

use crate::duration::positive;
use crate::field::{self, FieldError, FieldPath, Ignored, NotNull};
use crate::metadata::{label, namespaced};
use crate::written::Written;

/// How long an answer may take unless `timeout` says otherwise. Istio's default is ten minutes.
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// How much of a body can be held until there is an answer.
const MAX_BODY: u32 = 64 << 10;
const STATUS_ON_ERROR: u16 = 403;

/// An `orlop.dev` ExtensionProvider.
pub(crate) type Object = Written<SpecObject>;

// As Istio's MeshConfig.ExtensionProvider, whose `name` is the object's.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct SpecObject {
    /// It speaks Envoy's envoy.service.auth.v3.Authorization.
    envoy_ext_authz_grpc: NotNull<GrpcObject>,
    /// It is asked by requests like those that it is asked about, and lets pass with 200.
    envoy_ext_authz_http: NotNull<HttpObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct GrpcObject {
    /// The host of a service, or NAMESPACE/HOST.
    service: Option<String>,
    /// The port of the service.
    port: Option<i32>,
    /// How long an answer may take; 5s by default.
    timeout: NotNull<String>,
    /// Whether requests pass while it is away. By default they are refused.
    fail_open: NotNull<bool>,
    /// Routes are looked for after it has answered, whatever this says.
    #[serde(rename = "clearRouteCache")]
    _clear_route_cache: Option<Ignored>,
    /// What requests are answered with while it can't be asked, from "400" to "599"; "403" by default.
    status_on_error: NotNull<String>,
    /// Shows it the body of requests.
    include_request_body_in_check: NotNull<BodyObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct HttpObject {
    /// The host of a service, or NAMESPACE/HOST.
    service: Option<String>,
    /// The port of the service.
    port: Option<i32>,
    /// How long an answer may take; 5s by default.
    timeout: NotNull<String>,
    /// Whether requests pass while it is away. By default they are refused.
    fail_open: NotNull<bool>,
    /// Routes are looked for after it has answered, whatever this says.
    #[serde(rename = "clearRouteCache")]
    _clear_route_cache: Option<Ignored>,
    /// What requests are answered with while it can't be asked, from "400" to "599"; "403" by default.
    status_on_error: NotNull<String>,
    /// Shows it the body of requests.
    include_request_body_in_check: NotNull<BodyObject>,
    /// What comes before the request's path in the path that it is asked for.
    path_prefix: NotNull<String>,
    // Istio's older name for it.
    /// Which headers of the request it sees besides authorization: names, PREFIX*, *SUFFIX or *.
    #[serde(alias = "includeHeadersInCheck")]
    include_request_headers_in_check: NotNull<Vec<String>>,
    /// Headers that it gets besides, in place of the request's own of these names.
    include_additional_headers_in_check: NotNull<BTreeMap<String, String>>,
    /// Which headers of its answer the server gets if it lets pass. What clients write there is gone.
    headers_to_upstream_on_allow: NotNull<Vec<String>>,
    /// Which headers of its answer the client gets if it refuses; all by default.
    headers_to_downstream_on_deny: NotNull<Vec<String>>,
    /// Which headers of its answer the client gets with the server's answer if it lets pass.
    headers_to_downstream_on_allow: NotNull<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct BodyObject {
    /// How much of the body it sees, up to 65536 bytes. A longer body is answered with 413.
    max_request_bytes: u32,
    /// Whether it sees the beginning of a longer body instead.
    allow_partial_message: bool,
    /// Whether it gets the body as bytes (raw_body) in place of text. Only with gRPC.
    pack_as_bytes: bool,
}

/// Converts an ExtensionProvider.
pub(crate) fn convert(object: Object) -> Result<ExtensionProvider, FieldError> {
    let name = namespaced(&object.metadata)?;
    let spec = object.spec.0.unwrap_or_default();
    let (common, speaks, path) = match (spec.envoy_ext_authz_grpc.0, spec.envoy_ext_authz_http.0) {
        (Some(grpc), None) => (grpc, Speaks::Grpc, FieldPath::from("spec.envoyExtAuthzGrpc")),
        (None, Some(http)) => {
            let path = FieldPath::from("spec.envoyExtAuthzHttp");
            let (common, check) = http_check(http, &path)?;
            (common, Speaks::Http(check), path)
        }
        _ => {
            let problem = "must be one of envoyExtAuthzGrpc and envoyExtAuthzHttp";
            return Err(FieldError::new("spec", problem));
        }
    };
    let at = |key: &str| path.clone().key(key);
    let service = common.service.unwrap_or_default();
    let (namespace, host) =
        service.split_once('/').map_or((None, &*service), |(namespace, host)| (Some(namespace), host));
    if let Some(namespace) = namespace {
        label(namespace, "").map_err(|error| FieldError::new(at("service"), error.problem))?;
    }
    let timeout = match common.timeout.0 {
        Some(text) => positive(&text, || at("timeout"))?.min(MAX_TIMEOUT),
        None => TIMEOUT,
    };
    let status_on_error = match common.status_on_error.0.as_deref() {
        None | Some("") => STATUS_ON_ERROR,
        Some(text) => {
            let status = text.parse().ok().filter(|status| (400..=599).contains(status));
            let problem = || format!("{text:?} is no status of an error: write \"400\" to \"599\"");
            status.ok_or_else(|| FieldError::new(at("statusOnError"), problem()))?
        }
    };
    let body = common.include_request_body_in_check.0;
    Ok(ExtensionProvider {
        host: field::host(host, || at("service"))?,
        namespace: namespace.map(str::to_owned),
        port: field::port(common.port.unwrap_or_default(), || at("port"))?,
        timeout,
        fail_open: common.fail_open.0.unwrap_or_default(),
        status_on_error,
        body: body.map(|body| body_in_check(&body, at("includeRequestBodyInCheck"))).transpose()?,
        speaks,
        name,
    })
}

fn body_in_check(of: &BodyObject, path: FieldPath) -> Result<BodyInCheck, FieldError> {
    if !(1..=MAX_BODY).contains(&of.max_request_bytes) {
        let problem = format!("is not 1 to {MAX_BODY}: all of it is held until there is an answer");
        return Err(FieldError::new(path.key("maxRequestBytes"), problem));
    }
    Ok(BodyInCheck {
        max: of.max_request_bytes as usize,
        partial: of.allow_partial_message,
        bytes: of.pack_as_bytes,
    })
}

fn http_check(of: HttpObject, path: &FieldPath) -> Result<(GrpcObject, HttpCheck), FieldError> {
    let at = |key: &str| path.clone().key(key);
    let patterns = |list: NotNull<Vec<String>>, key: &str| {
        let all = list.0.unwrap_or_default().into_iter().enumerate();
        let pattern = |(index, text): (usize, String)| {
            let found = text.to_ascii_lowercase().parse::<Pattern>();
            found.map_err(|error| FieldError::new(at(key).index(index), error.to_string()))
        };
        all.map(pattern).collect::<Result<Vec<_>, _>>()
    };
    let to_upstream = patterns(of.headers_to_upstream_on_allow, "headersToUpstreamOnAllow")?;
    if let Some(index) = to_upstream.iter().position(|pattern| *pattern == Pattern::Present) {
        let problem = "would take all headers from clients; name those that the provider sets";
        return Err(FieldError::new(at("headersToUpstreamOnAllow").index(index), problem));
    }
    let prefix = of.path_prefix.0.unwrap_or_default();
    let fits = prefix.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
    if !(prefix.is_empty() || prefix.starts_with('/') && fits) {
        let problem = format!("{prefix:?} can't be the beginning of a path, such as /check");
        return Err(FieldError::new(at("pathPrefix"), problem));
    }
    let added = of.include_additional_headers_in_check.0.unwrap_or_default().into_iter();
    let added = added.map(|(name, value)| {
        let path = at("includeAdditionalHeadersInCheck").key(&name);
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let fits = !name.is_empty() && name.bytes().all(is_token);
        if !fits || value.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(FieldError::new(path, "is no header"));
        }
        Ok((name.to_ascii_lowercase(), value))
    });
    let check = HttpCheck {
        // Two slashes would be another path to some.
        path_prefix: prefix.trim_end_matches('/').to_owned(),
        shown: patterns(of.include_request_headers_in_check, "includeRequestHeadersInCheck")?,
        added: added.collect::<Result<_, _>>()?,
        to_upstream,
        to_client_on_deny: patterns(of.headers_to_downstream_on_deny, "headersToDownstreamOnDeny")?,
        to_client_on_allow: patterns(of.headers_to_downstream_on_allow, "headersToDownstreamOnAllow")?,
    };
    let common = GrpcObject {
        service: of.service,
        port: of.port,
        timeout: of.timeout,
        fail_open: of.fail_open,
        _clear_route_cache: of._clear_route_cache,
        status_on_error: of.status_on_error,
        include_request_body_in_check: of.include_request_body_in_check,
    };
    Ok((common, check))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::object::{Kind, Object, Source};

    fn read(spec: Value) -> Result<ExtensionProvider, FieldError> {
        let object = json!({
            "apiVersion": "orlop.dev/v1alpha1", "kind": "ExtensionProvider",
            "metadata": {"name": "authz", "namespace": "shop"}, "spec": spec,
        });
        match Kind::ExtensionProvider.convert(object, Source::Cluster)? {
            Object::ExtensionProvider(found) => Ok(std::sync::Arc::unwrap_or_clone(found)),
            other => panic!("{other:?}"),
        }
    }

    fn exact(text: &str) -> Vec<Pattern> {
        vec![Pattern::Exact(text.to_owned())]
    }

    #[test]
    fn every_field_of_istios_is_carried_over() {
        let http = read(json!({"envoyExtAuthzHttp": {
            "service": "infra/authz.infra.svc.cluster.local", "port": 8000, "timeout": "0.5s", "failOpen": true,
            "clearRouteCache": true, "statusOnError": "503", "pathPrefix": "/check/",
            "includeRequestBodyInCheck": {"maxRequestBytes": 1024, "allowPartialMessage": true, "packAsBytes": true},
            "includeRequestHeadersInCheck": ["Cookie", "X-Auth-*"],
            "includeAdditionalHeadersInCheck": {"X-From": "mesh"},
            "headersToUpstreamOnAllow": ["X-User"], "headersToDownstreamOnDeny": ["Set-Cookie"],
            "headersToDownstreamOnAllow": ["X-Seen"],
        }}))
        .unwrap();
        let check = HttpCheck {
            path_prefix: "/check".into(),
            shown: vec![Pattern::Exact("cookie".into()), Pattern::Prefix("x-auth-".into())],
            added: vec![("x-from".into(), "mesh".into())],
            to_upstream: exact("x-user"),
            to_client_on_deny: exact("set-cookie"),
            to_client_on_allow: exact("x-seen"),
        };
        let wanted = ExtensionProvider {
            name: orlop_model::NamespacedName::new("shop", "authz"),
            host: "authz.infra.svc.cluster.local".into(),
            namespace: Some("infra".into()),
            port: 8000,
            timeout: Duration::from_millis(500),
            fail_open: true,
            status_on_error: 503,
            body: Some(BodyInCheck { max: 1024, partial: true, bytes: true }),
            speaks: Speaks::Http(check),
        };
        assert_eq!(http, wanted);
        let grpc = read(json!({"envoyExtAuthzGrpc": {"service": "authz.infra.svc", "port": 9000}})).unwrap();
        assert_eq!((grpc.speaks, grpc.fail_open, grpc.status_on_error), (Speaks::Grpc, false, 403));
        assert_eq!((grpc.timeout, grpc.body), (TIMEOUT, None));
    }

    #[test]
    fn what_is_no_provider_is_an_error() {
        let grpc = |change: Value| {
            let mut of = json!({"service": "a.b", "port": 1});
            for (key, value) in change.as_object().unwrap() {
                of[key] = value.clone();
            }
            json!({"envoyExtAuthzGrpc": of})
        };
        for (spec, path) in [
            (json!({}), "spec"),
            (json!({"envoyExtAuthzGrpc": {}, "envoyExtAuthzHttp": {}}), "spec"),
            (json!({"opentelemetry": {}}), "spec.opentelemetry"),
            (grpc(json!({"service": ""})), "spec.envoyExtAuthzGrpc.service"),
            (grpc(json!({"service": "A B/c"})), "spec.envoyExtAuthzGrpc.service"),
            (grpc(json!({"port": 0})), "spec.envoyExtAuthzGrpc.port"),
            (grpc(json!({"timeout": "0s"})), "spec.envoyExtAuthzGrpc.timeout"),
            (grpc(json!({"statusOnError": "200"})), "spec.envoyExtAuthzGrpc.statusOnError"),
            (
                grpc(json!({"includeRequestBodyInCheck": {"maxRequestBytes": 65537}})),
                "spec.envoyExtAuthzGrpc.includeRequestBodyInCheck.maxRequestBytes",
            ),
            (
                json!({"envoyExtAuthzHttp": {"service": "a", "port": 1, "pathPrefix": "check"}}),
                "spec.envoyExtAuthzHttp.pathPrefix",
            ),
            (
                json!({"envoyExtAuthzHttp": {"service": "a", "port": 1, "headersToUpstreamOnAllow": ["a*b"]}}),
                "spec.envoyExtAuthzHttp.headersToUpstreamOnAllow[0]",
            ),
            (
                json!({"envoyExtAuthzHttp": {"service": "a", "port": 1, "headersToUpstreamOnAllow": ["a", "*"]}}),
                "spec.envoyExtAuthzHttp.headersToUpstreamOnAllow[1]",
            ),
        ] {
            let error = read(spec.clone()).unwrap_err();
            assert_eq!(error.path.to_string(), path, "{spec}: {error}");
        }
    }
}
