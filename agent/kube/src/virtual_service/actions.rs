//! What a rule does besides choosing a destination.

use orlop_model::world::routing::{
    Abort, Cors, DirectResponse, Fault, Mirror, Percent, Redirect, RedirectPort, Retries, RetryOn,
};
use serde::Deserialize;

use super::{DestinationObject, StringObject, destination, header_name};
use crate::duration::positive;
use crate::field::{FieldError, FieldPath, port};
use k8s_openapi::ByteString;

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RedirectObject {
    /// The path to go to.
    uri: Option<String>,
    /// The host to go to.
    authority: Option<String>,
    /// The port to go to. Not together with derivePort.
    port: Option<i32>,
    /// FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT.
    derive_port: Option<String>,
    /// http or https.
    scheme: Option<String>,
    /// 301 (if left out), 302, 303, 307 or 308.
    redirect_code: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(super) struct DirectObject {
    /// The status of the answer, from 200 to 599.
    status: u16,
    /// What is in it.
    body: Option<BodyObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct BodyObject {
    /// As text.
    string: Option<String>,
    /// In base64, instead.
    bytes: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RetriesObject {
    /// How often to try again; 0 for never.
    attempts: Option<i64>,
    /// How long one attempt may take. As long as all together, if left out.
    per_try_timeout: Option<String>,
    /// When to try again, parted by commas: connect-failure, refused-stream, unavailable, cancelled, 5xx,
    /// gateway-error, a status and others.
    retry_on: Option<String>,
    /// How long to wait at first: 25ms if left out.
    backoff: Option<String>,
    /// Whether localities that were tried are passed over, as long as there are others.
    retry_remote_localities: Option<bool>,
    /// Has no effect: each attempt is at another endpoint, as if it were true.
    retry_ignore_previous_hosts: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(super) struct FaultObject {
    /// Requests that wait.
    delay: Option<DelayObject>,
    /// Requests that are answered with a failure.
    abort: Option<AbortObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct DelayObject {
    /// How long.
    fixed_delay: Option<String>,
    /// Of how many requests: of all if left out.
    percentage: Option<PercentObject>,
    /// The same as a whole number.
    percent: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct AbortObject {
    /// The status of the answer.
    http_status: Option<u16>,
    /// The name of the status for gRPC, such as UNAVAILABLE.
    grpc_status: Option<String>,
    /// Of how many requests: of all if left out.
    percentage: Option<PercentObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(super) struct PercentObject {
    /// From 0 to 100.
    value: f64,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(super) struct MirrorObject {
    /// The service.
    destination: DestinationObject,
    /// Of how many requests it gets a copy: of all if left out.
    percentage: Option<PercentObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct CorsObject {
    /// Origins that may ask.
    allow_origins: Vec<StringObject>,
    /// Origins that may ask, letter by letter.
    allow_origin: Vec<String>,
    /// Methods that they may use.
    allow_methods: Vec<String>,
    /// Headers that they may send.
    allow_headers: Vec<String>,
    /// Headers of the answer that they may see.
    expose_headers: Vec<String>,
    /// How long a browser may remember this.
    max_age: Option<String>,
    /// Whether cookies may be sent.
    allow_credentials: Option<bool>,
    /// What becomes of preflights of other origins: FORWARD (the default), or IGNORE: they are answered here, with nothing
    /// that lets them ask.
    unmatched_preflights: Option<String>,
}

impl RedirectObject {
    pub(super) fn convert(self, path: &FieldPath) -> Result<Redirect, FieldError> {
        let at = |field: &str| path.clone().key(field);
        let code = self.redirect_code.unwrap_or(301);
        if !matches!(code, 301 | 302 | 303 | 307 | 308) {
            return Err(FieldError::new(
                at("redirectCode"),
                format!("{code} is not 301, 302, 303, 307 or 308"),
            ));
        }
        let port = match (self.port, self.derive_port.as_deref()) {
            (None, None) => RedirectPort::FromAuthority,
            (Some(number), None) => RedirectPort::Number(port(number, || at("port"))?),
            (None, Some("FROM_PROTOCOL_DEFAULT")) => RedirectPort::OfScheme,
            (None, Some("FROM_REQUEST_PORT")) => RedirectPort::OfRequest,
            (_, Some(other)) => {
                let problem =
                    format!("{other:?} is neither FROM_PROTOCOL_DEFAULT nor FROM_REQUEST_PORT alone");
                return Err(FieldError::new(at("derivePort"), problem));
            }
        };
        if let Some(scheme) = &self.scheme
            && !matches!(scheme.as_str(), "http" | "https")
        {
            return Err(FieldError::new(at("scheme"), format!("{scheme:?} is neither http nor https")));
        }
        let Self { uri, authority, scheme, .. } = self;
        Ok(Redirect { uri, authority, port, scheme, code, path: None })
    }
}

impl DirectObject {
    pub(super) fn convert(self, path: &FieldPath) -> Result<DirectResponse, FieldError> {
        if !(200..=599).contains(&self.status) {
            let problem = format!("{} is no status of an answer; write 200 to 599", self.status);
            return Err(FieldError::new(path.clone().key("status"), problem));
        }
        let body = self.body.unwrap_or_default();
        let at = |field: &str| path.clone().key("body").key(field);
        let body = match (body.string, body.bytes) {
            (Some(_), Some(_)) => return Err(FieldError::new(at("bytes"), "there is string already")),
            (string, None) => string.unwrap_or_default().into_bytes(),
            (None, Some(bytes)) => {
                let bytes: ByteString = serde_json::from_value(bytes.into())
                    .map_err(|_| FieldError::new(at("bytes"), "is no base64"))?;
                bytes.0
            }
        };
        Ok(DirectResponse { status: self.status, body })
    }
}

impl RetriesObject {
    /// Conditions that there are not here go to `unread`, as does what would have an endpoint asked again.
    pub(super) fn convert(self, path: &FieldPath, unread: &mut Vec<String>) -> Result<Retries, FieldError> {
        let at = |field: &str| path.clone().key(field);
        let default = Retries::default();
        // Whoever says how without how often wants none: so Istio has it.
        let attempts = self.attempts.map_or(Ok(0), u32::try_from).ok();
        let attempts = attempts.ok_or_else(|| FieldError::new(at("attempts"), "is no number of retries"))?;
        let time =
            |text: Option<String>, field: &str| text.map(|text| positive(&text, || at(field))).transpose();
        let on = self.retry_on.filter(|words| !words.is_empty());
        if self.retry_ignore_previous_hosts == Some(false) {
            unread.push(format!("{}: false", at("retryIgnorePreviousHosts")));
        }
        Ok(Retries {
            attempts,
            per_try: time(self.per_try_timeout, "perTryTimeout")?,
            on: on.map(|words| conditions(&words, &at("retryOn"), unread)).transpose()?,
            backoff: time(self.backoff, "backoff")?.unwrap_or(default.backoff),
            at_least: default.at_least,
            remote_localities: self.retry_remote_localities.unwrap_or(default.remote_localities),
        })
    }
}

/// Those that are good, but that there are not here, are none: not even the default ones count then.
fn conditions(words: &str, path: &FieldPath, unread: &mut Vec<String>) -> Result<Vec<RetryOn>, FieldError> {
    let mut on = Vec::new();
    let mut by_status = false;
    for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            // The statuses themselves are beside it.
            "retriable-status-codes" => by_status = true,
            "retriable-headers" | "http3-post-connect-failure" => unread.push(format!("{path} {word}")),
            word => on.push(condition(word).ok_or_else(|| {
                FieldError::new(path.clone(), format!("{word:?} is no condition and no status"))
            })?),
        }
    }
    if by_status && !on.iter().any(|on| matches!(on, RetryOn::Status(_))) {
        unread.push(format!("{path} retriable-status-codes without a status"));
    }
    Ok(on)
}

/// Envoy's words, and statuses.
fn condition(word: &str) -> Option<RetryOn> {
    Some(match word {
        "connect-failure" => RetryOn::ConnectFailure,
        "refused-stream" => RetryOn::RefusedStream,
        "reset-before-request" => RetryOn::ResetBeforeRequest,
        "reset" => RetryOn::Reset,
        "5xx" => RetryOn::ServerError,
        "gateway-error" => RetryOn::GatewayError,
        "retriable-4xx" => RetryOn::Conflict,
        "envoy-ratelimited" => RetryOn::RateLimited,
        "cancelled" => RetryOn::Grpc(1),
        "deadline-exceeded" => RetryOn::Grpc(4),
        "resource-exhausted" => RetryOn::Grpc(8),
        "internal" => RetryOn::Grpc(13),
        "unavailable" => RetryOn::Grpc(14),
        code => RetryOn::Status(code.parse().ok().filter(|code| (100..=599).contains(code))?),
    })
}

impl FaultObject {
    pub(super) fn convert(self, path: &FieldPath) -> Result<Fault, FieldError> {
        let delay = self.delay.map(|of| {
            let path = path.clone().key("delay");
            let text = of.fixed_delay.ok_or_else(|| {
                FieldError::new(path.clone().key("fixedDelay"), "is missing; say how long to wait")
            })?;
            let delay = positive(&text, || path.clone().key("fixedDelay"))?;
            let whole = of.percent.map(|percent| PercentObject { value: percent.into() });
            Ok::<_, FieldError>((delay, percent(of.percentage.or(whole), &path.key("percentage"))?))
        });
        let abort = self.abort.map(|of| {
            let path = path.clone().key("abort");
            let abort = match (of.http_status, of.grpc_status.as_deref()) {
                (Some(status), None) if (200..=599).contains(&status) => Abort::Http(status),
                (None, Some(status)) => Abort::Grpc(grpc_status(status).ok_or_else(|| {
                    FieldError::new(path.clone().key("grpcStatus"), format!("{status:?} is no gRPC status"))
                })?),
                _ => {
                    let problem = "needs httpStatus, 200 to 599, or grpcStatus";
                    return Err(FieldError::new(path, problem));
                }
            };
            Ok((abort, percent(of.percentage, &path.key("percentage"))?))
        });
        Ok(Fault { delay: delay.transpose()?, abort: abort.transpose()? })
    }
}

/// By name or by number.
fn grpc_status(text: &str) -> Option<u8> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let by_name = NAMES.iter().position(|name| *name == text).and_then(|at| u8::try_from(at).ok());
    by_name.or_else(|| text.parse().ok().filter(|status| *status <= 16))
}

/// All of them where nothing is said.
fn percent(of: Option<PercentObject>, path: &FieldPath) -> Result<Percent, FieldError> {
    let Some(PercentObject { value }) = of else { return Ok(Percent::ALL) };
    if !(0.0..=100.0).contains(&value) {
        let problem = format!("{value} is no percentage; write 0 to 100");
        return Err(FieldError::new(path.clone().key("value"), problem));
    }
    Ok(Percent((value * 10_000.0).round() as u32))
}

/// `mirror` with its percentages, or `mirrors`.
pub(super) fn mirrors(
    (mirror, percentage, whole): (Option<DestinationObject>, Option<PercentObject>, Option<u32>),
    mirrors: Vec<MirrorObject>,
    path: &FieldPath,
) -> Result<Vec<Mirror>, FieldError> {
    let at = |field: &str| path.clone().key(field);
    if mirror.is_some() && !mirrors.is_empty() {
        return Err(FieldError::new(at("mirror"), "is beside mirrors; keep one of them"));
    }
    let whole = whole.map(|percent| PercentObject { value: percent.into() });
    if let Some(mirror) = mirror {
        let percent = percent(percentage.or(whole), &at("mirrorPercentage"))?;
        return Ok(vec![Mirror { destination: destination(mirror, &at("mirror"))?, percent }]);
    }
    let mirrors = mirrors.into_iter().enumerate().map(|(index, of)| {
        let path = at("mirrors").index(index);
        Ok(Mirror {
            destination: destination(of.destination, &path.clone().key("destination"))?,
            percent: percent(of.percentage, &path.key("percentage"))?,
        })
    });
    mirrors.collect()
}

impl CorsObject {
    pub(super) fn convert(self, path: &FieldPath) -> Result<Cors, FieldError> {
        let at = |field: &str| path.clone().key(field);
        let origins = self.allow_origins.into_iter().enumerate();
        let origins = origins.map(|(index, of)| of.convert(&at("allowOrigins").index(index), false));
        let mut origins = origins.collect::<Result<Vec<_>, _>>()?;
        origins.extend(self.allow_origin.into_iter().map(orlop_model::world::routing::StringMatch::Exact));
        let names = |names: Vec<String>, field: &str| {
            let names = names.iter().enumerate();
            let names = names.map(|(index, name)| match name.as_str() {
                "*" => Ok("*".to_owned()),
                name => header_name(name, || at(field).index(index)),
            });
            names.collect::<Result<Vec<_>, FieldError>>()
        };
        let answers_all = match self.unmatched_preflights.as_deref() {
            None | Some("UNSPECIFIED" | "FORWARD") => false,
            Some("IGNORE") => true,
            Some(other) => {
                let problem = format!("{other:?} is neither FORWARD nor IGNORE");
                return Err(FieldError::new(at("unmatchedPreflights"), problem));
            }
        };
        Ok(Cors {
            origins,
            methods: self.allow_methods,
            headers: names(self.allow_headers, "allowHeaders")?,
            expose: names(self.expose_headers, "exposeHeaders")?,
            max_age: self
                .max_age
                .map(|text| crate::duration::duration(&text, || at("maxAge")))
                .transpose()?,
            credentials: self.allow_credentials.unwrap_or(false),
            answers_all,
        })
    }
}
