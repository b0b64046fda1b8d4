use std::fmt::Display;
use std::str::FromStr;

use orlop_model::world::security::{
    Action, AuthorizationPolicy, Condition, IpBlock, Match, Operation, Pattern, Rule, ServiceAccount, Source,
};
use serde::Deserialize;

use crate::field::{FieldError, FieldPath, NotNull};
use crate::metadata::{label, namespaced, subdomain};
use crate::read::Metadata;
use crate::selector::{self, Selector};
use crate::target::{TargetObject, targets};
use crate::written::Written;

const DRY_RUN: &str = "istio.io/dry-run";
const CLAIMS: &str = "request.auth.claims";

type Texts = NotNull<Vec<String>>;

/// A `security.istio.io` AuthorizationPolicy.
pub(crate) type Object = Written<SpecObject>;

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct SpecObject {
    /// The workloads that the policy is for. Not together with targetRefs.
    selector: NotNull<Selector>,
    /// What the policy is for, if it is one thing; see targetRefs.
    target_ref: NotNull<TargetObject>,
    /// The Services, ServiceEntries, Gateways or GatewayClass whose requests the policy is for. Waypoints
    /// judge them.
    target_refs: NotNull<Vec<TargetObject>>,
    /// What the policy matches: whatever one of the rules does. Without rules it matches nothing, so that
    /// ALLOW denies everything; the rule {} matches everything.
    rules: NotNull<Vec<RuleObject>>,
    /// What is done with what matches: ALLOW (the default), DENY, AUDIT or CUSTOM.
    action: NotNull<String>,
    /// Whom to ask, with action CUSTOM.
    provider: NotNull<ProviderObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct ProviderObject {
    /// The name of an ExtensionProvider in the policy's namespace or the root namespace.
    name: NotNull<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RuleObject {
    /// Who is calling: one of these. Left out, anybody.
    from: NotNull<Vec<FromObject>>,
    /// What is called: one of these. Left out, anything.
    to: NotNull<Vec<ToObject>>,
    /// Further conditions, all of which must hold.
    when: NotNull<Vec<ConditionObject>>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct FromObject {
    /// Who is calling. All fields that are there must match.
    source: Option<SourceObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct ToObject {
    /// What is called. All fields that are there must match.
    operation: Option<OperationObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SourceObject {
    /// Identities as TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT. A '*' may be at the beginning or the end. Needs
    /// mutual TLS.
    principals: Texts,
    /// Identities that do not match.
    not_principals: Texts,
    /// Principals of verified tokens, as ISSUER/SUBJECT. A '*' may be at the beginning or the end.
    request_principals: Texts,
    /// Principals of tokens that do not match.
    not_request_principals: Texts,
    /// Namespaces of the calling workloads. Needs mutual TLS.
    namespaces: Texts,
    /// Namespaces that do not match.
    not_namespaces: Texts,
    /// Service accounts as NAMESPACE/ACCOUNT, or ACCOUNT of the policy's namespace. Not together with
    /// principals or namespaces.
    service_accounts: Texts,
    /// Service accounts that do not match.
    not_service_accounts: Texts,
    /// Addresses or CIDR blocks that the connection is from.
    ip_blocks: Texts,
    /// Addresses or blocks that do not match.
    not_ip_blocks: Texts,
    /// Addresses or CIDR blocks of the original client.
    remote_ip_blocks: Texts,
    /// Addresses or blocks of original clients that do not match.
    not_remote_ip_blocks: Texts,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct OperationObject {
    /// Hosts of the request, in either case. A '*' may be at the beginning or the end. For HTTP.
    hosts: Texts,
    /// Hosts that do not match.
    not_hosts: Texts,
    /// Ports that are called, each in quotes.
    ports: Texts,
    /// Ports that do not match.
    not_ports: Texts,
    /// Methods of the request, such as GET. For HTTP; gRPC is always POST.
    methods: Texts,
    /// Methods that do not match.
    not_methods: Texts,
    /// Paths of the request. A '*' may be at the beginning or the end; {*} is one segment, {**} one or more.
    /// For HTTP.
    paths: Texts,
    /// Paths that do not match.
    not_paths: Texts,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ConditionObject {
    /// What is looked at: source.ip, destination.port, request.headers[NAME], request.auth.claims[NAME] and
    /// others.
    key: Option<String>,
    /// What it may be: one of these.
    values: Texts,
    /// What it may not be.
    not_values: Texts,
}

/// Converts an AuthorizationPolicy.
pub(crate) fn convert(object: Object) -> Result<AuthorizationPolicy, FieldError> {
    let name = namespaced(&object.metadata)?;
    let spec = object.spec.0.unwrap_or_default();
    let dry_run = dry_run(&object.metadata)?;
    let targets = targets(spec.target_refs, spec.target_ref, &name.namespace)?;
    if !targets.is_empty() && spec.selector.0.is_some() {
        let problem = "can't be together with targetRefs; keep one of them";
        return Err(FieldError::new("spec.selector", problem));
    }
    let rules = spec.rules.0.unwrap_or_default().into_iter().enumerate();
    let rules = rules
        .map(|(index, entry)| rule(entry, &name.namespace, FieldPath::from("spec.rules").index(index)))
        .collect::<Result<_, _>>()?;
    Ok(AuthorizationPolicy {
        selector: selector::convert(spec.selector.0)?,
        targets,
        action: action(spec.action.0.as_deref())?,
        provider: spec.provider.0.and_then(|provider| provider.name.0).filter(|name| !name.is_empty()),
        rules,
        dry_run,
        name,
    })
}

fn action(action: Option<&str>) -> Result<Action, FieldError> {
    match action {
        None | Some("" | "ALLOW") => Ok(Action::Allow),
        Some("DENY") => Ok(Action::Deny),
        Some("AUDIT") => Ok(Action::Audit),
        Some("CUSTOM") => Ok(Action::Custom),
        Some(other) => {
            let problem = format!("{other:?} is not ALLOW, DENY, AUDIT or CUSTOM");
            Err(FieldError::new("spec.action", problem))
        }
    }
}

fn dry_run(metadata: &Metadata) -> Result<bool, FieldError> {
    match metadata.annotations.as_ref().and_then(|annotations| annotations.get(DRY_RUN)).map(String::as_str) {
        Some("true") => Ok(true),
        None | Some("false") => Ok(false),
        Some(other) => {
            let path = FieldPath::from("metadata.annotations").key(DRY_RUN);
            Err(FieldError::new(path, format!("{other:?} is neither \"true\" nor \"false\"")))
        }
    }
}

/// Converts rules that must be some if the field is there.
pub(crate) fn rules(
    list: NotNull<Vec<RuleObject>>,
    namespace: &str,
    path: FieldPath,
) -> Result<Vec<Rule>, FieldError> {
    entries(list, path, |entry, path| rule(entry, namespace, path))
}

fn rule(rule: RuleObject, namespace: &str, path: FieldPath) -> Result<Rule, FieldError> {
    let from = entries(rule.from, path.clone().key("from"), |entry, path| {
        let path = path.key("source");
        let missing =
            || FieldError::new(path.clone(), "is missing; say who, or leave out from to mean anyone");
        source(entry.source.ok_or_else(missing)?, namespace, &path)
    })?;
    let to = entries(rule.to, path.clone().key("to"), |entry, path| {
        let path = path.key("operation");
        let missing =
            || FieldError::new(path.clone(), "is missing; say what, or leave out to to mean anything");
        operation(entry.operation.ok_or_else(missing)?, &path)
    })?;
    let when = entries(rule.when, path.key("when"), |entry, path| condition(entry, namespace, &path))?;
    Ok(Rule { from, to, when })
}

fn source(source: SourceObject, namespace: &str, path: &FieldPath) -> Result<Source, FieldError> {
    let account = |text: &str| service_account(text, namespace);
    let found = Source {
        principals: both(path, "principals", source.principals, source.not_principals, principal)?,
        namespaces: both(path, "namespaces", source.namespaces, source.not_namespaces, parsed::<Pattern>)?,
        service_accounts: both(
            path,
            "serviceAccounts",
            source.service_accounts,
            source.not_service_accounts,
            account,
        )?,
        ip_blocks: both(path, "ipBlocks", source.ip_blocks, source.not_ip_blocks, parsed::<IpBlock>)?,
        remote_ip_blocks: both(
            path,
            "remoteIpBlocks",
            source.remote_ip_blocks,
            source.not_remote_ip_blocks,
            parsed,
        )?,
        request_principals: both(
            path,
            "requestPrincipals",
            source.request_principals,
            source.not_request_principals,
            parsed,
        )?,
    };
    if found == Source::default() {
        return Err(FieldError::new(path.clone(), "says nothing; fill it, or leave out from to mean anyone"));
    }
    Ok(found)
}

fn operation(operation: OperationObject, path: &FieldPath) -> Result<Operation, FieldError> {
    let found = Operation {
        ports: both(path, "ports", operation.ports, operation.not_ports, port)?,
        hosts: both(path, "hosts", operation.hosts, operation.not_hosts, host)?,
        methods: both(path, "methods", operation.methods, operation.not_methods, method)?,
        paths: both(path, "paths", operation.paths, operation.not_paths, parsed)?,
    };
    if found == Operation::default() {
        return Err(FieldError::new(path.clone(), "says nothing; fill it, or leave out to to mean anything"));
    }
    Ok(found)
}

fn condition(condition: ConditionObject, namespace: &str, path: &FieldPath) -> Result<Condition, FieldError> {
    let key = condition.key.filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| FieldError::new(path.clone().key("key"), "is missing; name an attribute"))?;
    let (values, not) = (condition.values, condition.not_values);
    if values.0.is_none() && not.0.is_none() {
        return Err(FieldError::new(path.clone(), "has neither values nor notValues; give one of them"));
    }
    let account = |text: &str| service_account(text, namespace);
    Ok(match key.as_str() {
        "source.ip" => Condition::SourceIp(both(path, "values", values, not, parsed)?),
        "source.namespace" => Condition::SourceNamespace(both(path, "values", values, not, parsed)?),
        "source.principal" => Condition::SourcePrincipal(both(path, "values", values, not, principal)?),
        "source.serviceAccount" => {
            Condition::SourceServiceAccount(both(path, "values", values, not, account)?)
        }
        "destination.ip" => Condition::DestinationIp(both(path, "values", values, not, parsed)?),
        "destination.port" => Condition::DestinationPort(both(path, "values", values, not, port)?),
        "remote.ip" => Condition::RemoteIp(both(path, "values", values, not, parsed)?),
        "connection.sni" => Condition::Sni(both(path, "values", values, not, sni)?),
        "request.auth.principal" => Condition::RequestPrincipal(both(path, "values", values, not, parsed)?),
        "request.auth.audiences" => Condition::RequestAudience(both(path, "values", values, not, parsed)?),
        "request.auth.presenter" => Condition::RequestPresenter(both(path, "values", values, not, parsed)?),
        key if key.starts_with(CLAIMS) => match claim(key) {
            Some(names) => Condition::Claim(names, both(path, "values", values, not, parsed)?),
            None => {
                let problem = format!("{key:?} names no claim; write {CLAIMS}[NAME], or [NAME][NESTED]");
                return Err(FieldError::new(path.clone().key("key"), problem));
            }
        },
        _ => match header(&key).as_deref() {
            Some("host" | ":authority") => Condition::Host(both(path, "values", values, not, host)?),
            Some(":method") => Condition::Method(both(path, "values", values, not, method)?),
            Some(name) if is_seen(name) => {
                if !is_header(name) {
                    return Err(FieldError::new(
                        path.clone().key("key"),
                        format!("{name:?} is no name of a header"),
                    ));
                }
                Condition::Header(name.to_owned(), both(path, "values", values, not, parsed)?)
            }
            _ => Condition::Unread(key),
        },
    })
}

/// Headers that servers don't get as the client writes them, so that it would be of no use to look at them.
const UNREAD_HEADERS: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "transfer-encoding",
    "x-forwarded-client-cert",
];

/// The names in the brackets of a key that is about a claim.
pub(crate) fn claim(key: &str) -> Option<Vec<String>> {
    let names = key.strip_prefix(CLAIMS)?.strip_prefix('[')?.strip_suffix(']')?;
    let names: Vec<_> = names.split("][").map(str::to_owned).collect();
    let is_name = |name: &String| !name.is_empty() && !name.contains(['[', ']']);
    names.iter().all(is_name).then_some(names)
}

/// The name of the header that a key is about and that servers get as the client writes it, in lower case.
pub(crate) fn header_seen(key: &str) -> Option<String> {
    header(key).filter(|name| is_seen(name) && is_header(name))
}

fn is_seen(name: &str) -> bool {
    !name.starts_with(':') && !UNREAD_HEADERS.contains(&name)
}

fn is_header(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// The name of the header that a key is about, in lower case.
fn header(key: &str) -> Option<String> {
    let name = key.strip_prefix("request.headers[")?.strip_suffix(']')?;
    (!name.is_empty()).then(|| name.to_ascii_lowercase())
}

/// Converts a list that must have entries if it is there: an empty one reads as nobody and would mean anybody.
fn entries<T, U>(
    list: NotNull<Vec<T>>,
    path: FieldPath,
    convert: impl Fn(T, FieldPath) -> Result<U, FieldError>,
) -> Result<Vec<U>, FieldError> {
    match list.0 {
        None => Ok(Vec::new()),
        Some(list) if list.is_empty() => Err(empty(path)),
        Some(list) => {
            let entries = list.into_iter().enumerate();
            entries.map(|(index, entry)| convert(entry, path.clone().index(index))).collect()
        }
    }
}

fn empty(path: FieldPath) -> FieldError {
    FieldError::new(path, "is an empty list; fill it, or leave it out to mean any")
}

/// A field and its `not` twin.
fn both<T>(
    path: &FieldPath,
    name: &str,
    values: Texts,
    not_values: Texts,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Match<T>, FieldError> {
    let mut initial = name.chars();
    let not_name =
        format!("not{}{}", initial.next().unwrap_or_default().to_ascii_uppercase(), initial.as_str());
    let list = |list, name: &str| {
        entries(list, path.clone().key(name), |text: String, path| {
            parse(&text).map_err(|problem| FieldError::new(path, problem))
        })
    };
    Ok(Match { values: list(values, name)?, not_values: list(not_values, &not_name)? })
}

fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// Host names are the same in either case, and with a dot at their end or without.
fn host(text: &str) -> Result<Pattern, String> {
    let text = text.to_ascii_lowercase();
    let (host, port) = text.rsplit_once(':').map_or((&*text, None), |(host, port)| (host, Some(port)));
    match (host.strip_suffix('.').filter(|host| !matches!(*host, "" | "*")), port) {
        (Some(host), None) => parsed(host),
        (Some(host), Some(port)) => parsed(format!("{host}:{port}").as_str()),
        (None, _) => parsed(&text),
    }
}

/// What a client's TLS names is a host alone, in lower case.
fn sni(text: &str) -> Result<Pattern, String> {
    if text.contains(':') {
        return Err(format!("{text:?} has a port, which no client's TLS names"));
    }
    host(text)
}

fn method(text: &str) -> Result<Pattern, String> {
    parsed(text.to_ascii_uppercase().as_str())
}

fn principal(text: &str) -> Result<Pattern, String> {
    match text.strip_prefix("spiffe://") {
        None => parsed(text),
        Some(rest) => Err(format!("{text:?} would match nothing; write it without spiffe://, as {rest}")),
    }
}

fn service_account(text: &str, own_namespace: &str) -> Result<ServiceAccount, String> {
    let (namespace, name) = text.split_once('/').unwrap_or((own_namespace, text));
    let good = label(namespace, "").and_then(|()| subdomain(name, "")).is_ok();
    if good {
        return Ok(ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() });
    }
    let more = if text.contains('*') { "; for patterns there are principals and namespaces" } else { "" };
    Err(format!("{text:?} is not a service account: write NAME or NAMESPACE/NAME{more}"))
}

fn port(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|&port: &u16| port != 0 && !text.starts_with('+'));
    number.ok_or_else(|| format!("{text:?} is not a port: want \"1\" to \"65535\""))
}

#[cfg(test)]
mod tests;
