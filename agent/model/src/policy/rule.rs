use std::fmt;

use super::facts::{Facts, RequestFacts, Token};
use super::trust::TrustDomains;
use crate::http::Values;
use crate::world::PathPattern;
use crate::world::security::{
    Action, Condition, IpBlock, Match, Operation, Pattern, Rule, ServiceAccount, Source,
};
use crate::world::stream::Sni;

/// A rule made ready to be asked: all clauses must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CompiledRule {
    pub clauses: Vec<Clause>,
    /// What the rule asks that nobody sees who judges by it, in the order written.
    pub unseen: Vec<String>,
    /// It can't match, since it would have to show that.
    pub never: bool,
    /// Whether a check holds of which nobody can tell: in the rules of ALLOW it does not.
    pub if_in_doubt: bool,
}

/// Who judges by a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// A node, which sees connections.
    Connections,
    /// A waypoint, which sees the requests in them.
    Requests,
}

/// Of a token that nobody has verified.
const UNTOLD: &str = "no RequestAuthentication is for it, so no token is looked at";

#[cfg(test)]
thread_local! {
    /// How many rules have been asked, for tests of the index.
    pub(super) static LOOKED_AT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Holds if one of its alternatives does, all of whose checks must hold.
pub(crate) type Clause = Vec<Vec<Check>>;

/// One field of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Check {
    /// As the resource spells it.
    pub field: &'static str,
    pub negated: bool,
    pub test: Test,
}

/// One fact of a connection or request and the values it is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Test {
    Principal(Patterns),
    Namespace(Patterns),
    /// As `ns/NAMESPACE/sa/SERVICE_ACCOUNT`, sorted.
    ServiceAccount(Vec<String>),
    SourceIp(Vec<IpBlock>),
    /// That of a gateway's client, of what comes by one.
    RemoteIp(Vec<IpBlock>),
    DestinationIp(Vec<IpBlock>),
    /// Sorted.
    DestinationPort(Vec<u16>),
    /// The name in the client's TLS.
    Sni(Patterns),
    Host(Patterns),
    Method(Patterns),
    Path(Vec<PathPattern>),
    /// By the name, in lower case.
    Header(String, Patterns),
    /// `ISSUER/SUBJECT` of a token.
    RequestPrincipal(Patterns),
    /// A claim of a token, by its names.
    Claim(Vec<String>, Patterns),
}

/// Patterns of one field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Patterns {
    /// Sorted.
    pub exact: Vec<String>,
    pub other: Vec<Pattern>,
}

impl CompiledRule {
    /// What can't be seen keeps an ALLOW rule from matching; in the rules of other actions it is left out, so that
    /// they match more.
    pub fn new(rule: &Rule, action: Action, sight: Sight, trust: &TrustDomains<'_>) -> Self {
        let mut reader = Reader { sight, trust, unseen: Vec::new() };
        let mut clauses: Vec<Clause> = Vec::new();
        if !rule.from.is_empty() {
            clauses.push(rule.from.iter().map(|from| reader.source(from)).collect());
        }
        if !rule.to.is_empty() {
            clauses.push(rule.to.iter().map(|to| reader.operation(to)).collect());
        }
        clauses.extend(rule.when.iter().map(|when| vec![reader.condition(when)]));
        // An alternative without checks always holds, and its clause with it.
        clauses.retain(|clause: &Clause| clause.iter().all(|alternative| !alternative.is_empty()));
        let (unseen, allows) = (reader.unseen, action == Action::Allow);
        Self { clauses, never: allows && !unseen.is_empty(), unseen, if_in_doubt: !allows }
    }

    /// Whether all of it holds.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        #[cfg(test)]
        LOOKED_AT.set(LOOKED_AT.get() + 1);
        let holds = |alternative: &Vec<Check>| alternative.iter().all(|check| self.holds(check, facts));
        !self.never && self.clauses.iter().all(|clause| clause.iter().any(holds))
    }

    /// Whether it may be the name in the client's TLS that decides if it matches, given all else that is known of the
    /// connection.
    pub fn wants_sni(&self, facts: &Facts<'_>) -> bool {
        let may_hold = |check: &Check| {
            matches!(check.test, Test::Sni(_))
                || check.test.hits(facts).is_none_or(|hits| hits != check.negated)
        };
        let may_match = |clause: &Clause| clause.iter().any(|all| all.iter().all(may_hold));
        self.asks_for_sni() && !self.never && self.clauses.iter().all(may_match)
    }

    /// Whether there is anything in it about the name in the client's TLS.
    pub fn asks_for_sni(&self) -> bool {
        let checks = self.clauses.iter().flatten().flatten();
        checks.into_iter().any(|check| matches!(check.test, Test::Sni(_)))
    }

    /// Whether it matches, and names whoever connects: by the whole account, and not by what is true of others too.
    pub fn names(&self, facts: &Facts<'_>) -> bool {
        let names = |all: &Vec<Check>| {
            let is_named = |check: &Check| !check.negated && check.test.names(facts);
            all.iter().any(is_named) && all.iter().all(|check| self.holds(check, facts))
        };
        self.clauses.iter().any(|clause| clause.iter().any(names)) && self.matches(facts)
    }

    /// Whether one of its checks holds.
    pub fn holds(&self, check: &Check, facts: &Facts<'_>) -> bool {
        check.test.hits(facts).map_or(self.if_in_doubt, |hits| hits != check.negated)
    }
}

impl Test {
    /// Whether one of the values is the account of whoever connects, of whatever trust domain.
    fn names(&self, facts: &Facts<'_>) -> bool {
        match self {
            Test::Principal(Patterns { exact, other }) => {
                let names_account = |pattern: &Pattern| match pattern {
                    Pattern::Suffix(end) => {
                        facts.principal.ends_with(&**end) && end.ends_with(facts.service_account)
                    }
                    _ => false,
                };
                exact.iter().any(|of| of == facts.principal) || other.iter().any(names_account)
            }
            Test::ServiceAccount(_) => self.hits(facts) == Some(true),
            _ => false,
        }
    }

    /// Whether the fact is one of the values; `None` where nobody can tell: it is not seen, or is there in several
    /// ways that say different things.
    pub fn hits(&self, facts: &Facts<'_>) -> Option<bool> {
        match self {
            Test::Principal(patterns) => Some(patterns.hit(facts.principal)),
            Test::Namespace(patterns) => Some(patterns.hit(facts.namespace)),
            Test::ServiceAccount(accounts) => {
                let found = accounts.binary_search_by(|account| account.as_str().cmp(facts.service_account));
                Some(found.is_ok())
            }
            Test::SourceIp(blocks) => Some(blocks.iter().any(|block| block.contains(facts.source))),
            Test::RemoteIp(blocks) => {
                let remote = facts.remote?;
                Some(blocks.iter().any(|block| block.contains(remote)))
            }
            Test::DestinationIp(blocks) => {
                let destination = facts.destination?;
                Some(blocks.iter().any(|block| block.contains(destination)))
            }
            Test::DestinationPort(ports) => Some(ports.binary_search(&facts.port).is_ok()),
            Test::Host(patterns) => {
                let hosts = &facts.request?.hosts;
                (!hosts.is_empty()).then(|| hosts.iter().any(|host| patterns.hit(host)))
            }
            Test::Sni(patterns) => match facts.sni {
                Sni::Unknown => None,
                Sni::Absent => Some(false),
                Sni::Name(name) => Some(patterns.hit(name)),
            },
            Test::Method(patterns) => {
                // Some servers take them in either case.
                let method = facts.request?.method;
                let upper = method.to_ascii_uppercase();
                alike([method, &upper].map(|method| patterns.hit(method)).into_iter())
            }
            Test::Path(patterns) => {
                let paths = facts.request?.paths.as_ref()?;
                alike(paths.iter().map(|path| patterns.iter().any(|pattern| pattern.matches(path))))
            }
            Test::Header(name, patterns) => {
                let headers = facts.request?.headers;
                let is = |value: &str| patterns.other.contains(&Pattern::Present) || patterns.hit(value);
                let (values, others) = (headers.values(name), headers.otherwise(name));
                let spelled = headers.alike(name);
                match (&values[..], &others[..], &spelled[..]) {
                    ([], _, []) => return Some(false),
                    ([value], [], []) => return Some(is(value)),
                    _ => {}
                }
                // Whoever knows one spelling alone sees none of the others.
                let missing = values.is_empty().then_some(false);
                let all: Vec<_> = match &spelled[..] {
                    [] => Vec::new(),
                    _ => values.iter().cloned().chain(spelled).collect(),
                };
                // One server takes the first, one the last, one all of them together.
                let mut read = [values, others, all];
                for values in read.iter_mut().filter(|values| values.len() > 1) {
                    values.extend([",", ", "].map(|between| values.join(between).into()));
                }
                alike(missing.into_iter().chain(read.iter().flatten().map(|value| is(value))))
            }
            Test::RequestPrincipal(patterns) => match facts.token {
                Token::Untold => None,
                Token::Missing => Some(false),
                Token::Verified(claims) => Some(patterns.hit(claims.principal()?)),
            },
            Test::Claim(names, patterns) => match facts.token {
                Token::Untold => None,
                Token::Missing => Some(false),
                Token::Verified(claims) => match claims.values(names) {
                    Values::Missing => Some(false),
                    Values::Texts(texts) => Some(texts.into_iter().any(|text| patterns.hit(text))),
                    Values::Other if patterns.other.contains(&Pattern::Present) => Some(true),
                    Values::Other => None,
                },
            },
        }
    }

    /// What there is, as people write it; `None` where only an identity would tell.
    pub fn actual(&self, facts: &Facts<'_>) -> Option<String> {
        let known = !facts.principal.is_empty();
        let of_request = |text: &dyn Fn(&RequestFacts<'_>) -> String| {
            Some(facts.request.map_or_else(|| "no request was seen".to_owned(), text))
        };
        match self {
            Test::SourceIp(_) => Some(format!("the source's address is {}", facts.source)),
            Test::RemoteIp(_) => Some(match facts.remote {
                Some(address) => format!("the client's address is {address}"),
                None => "the gateway does not say what address its client has".to_owned(),
            }),
            Test::DestinationIp(_) => Some(match facts.destination {
                Some(address) => format!("the destination's address is {address}"),
                None => "the destination was asked for by name".to_owned(),
            }),
            Test::DestinationPort(_) => Some(format!("the destination's port is {}", facts.port)),
            Test::Sni(_) => Some(match facts.sni {
                Sni::Unknown => {
                    "no name of a server was seen in TLS that is sure to be the only one".to_owned()
                }
                Sni::Absent => "the connection names no server by TLS".to_owned(),
                Sni::Name(name) => format!("the server is named {name} by TLS"),
            }),
            Test::Principal(_) => known.then(|| format!("the source's principal is {}", facts.principal)),
            Test::Namespace(_) => known.then(|| format!("the source's namespace is {}", facts.namespace)),
            Test::ServiceAccount(_) => {
                known.then(|| format!("the source's service account is {}", short(facts.service_account)))
            }
            Test::Host(_) => of_request(&|request| format!("the host is {}", request.authority)),
            Test::Method(_) => of_request(&|request| format!("the method is {}", request.method)),
            Test::Path(_) => of_request(&|request| format!("the path is {}", request.path)),
            Test::Header(name, _) => of_request(&|request| match &request.headers.values(name)[..] {
                [] if request.headers.alike(name).is_empty() => format!("there is no header {name}"),
                [] => format!("there is a header that servers may take for {name}"),
                // What a header holds may be a secret.
                [_] => format!("there is a header {name}"),
                several => format!("there are {} headers {name}", several.len()),
            }),
            Test::RequestPrincipal(_) => of_request(&|_| match facts.token {
                Token::Untold => UNTOLD.to_owned(),
                Token::Missing => "there is no token".to_owned(),
                Token::Verified(claims) => match claims.principal() {
                    Some("") => "the token names no subject".to_owned(),
                    Some(principal) => format!("the token's principal is {principal}"),
                    None => "the token's subject makes it look like another issuer's".to_owned(),
                },
            }),
            Test::Claim(names, _) => of_request(&|_| {
                let name = names.join(".");
                match facts.token {
                    Token::Untold => UNTOLD.to_owned(),
                    Token::Missing => "there is no token".to_owned(),
                    // What a claim holds may be private.
                    Token::Verified(claims) => match claims.values(names) {
                        Values::Missing => format!("the token has no claim {name}"),
                        Values::Texts(_) => format!("the token has a claim {name}"),
                        Values::Other => format!("the token has a claim {name} that is no text"),
                    },
                }
            }),
        }
    }

    /// The values, a few of them where they are many.
    pub fn values(&self) -> String {
        match self {
            Test::Path(patterns) => few(patterns.iter().map(|pattern| pattern as &dyn fmt::Display)),
            Test::Principal(patterns)
            | Test::Namespace(patterns)
            | Test::Sni(patterns)
            | Test::Host(patterns)
            | Test::Method(patterns)
            | Test::Header(_, patterns)
            | Test::RequestPrincipal(patterns)
            | Test::Claim(_, patterns) => {
                let other = patterns.other.iter().map(|pattern| pattern as &dyn fmt::Display);
                few(patterns.exact.iter().map(|text| text as &dyn fmt::Display).chain(other))
            }
            Test::ServiceAccount(accounts) => {
                let shown: Vec<_> = accounts.iter().map(|account| short(account)).collect();
                few(shown.iter().map(|account| account as &dyn fmt::Display))
            }
            Test::SourceIp(blocks) | Test::RemoteIp(blocks) | Test::DestinationIp(blocks) => {
                few(blocks.iter().map(|block| block as &dyn fmt::Display))
            }
            Test::DestinationPort(ports) => few(ports.iter().map(|port| port as &dyn fmt::Display)),
        }
    }
}

impl Patterns {
    fn new(patterns: impl IntoIterator<Item = Pattern>) -> Self {
        let (mut exact, mut other) = (Vec::new(), Vec::new());
        for pattern in patterns {
            match pattern {
                Pattern::Exact(text) => exact.push(text),
                pattern => other.push(pattern),
            }
        }
        exact.sort();
        exact.dedup();
        other.sort();
        other.dedup();
        Self { exact, other }
    }

    fn hit(&self, text: &str) -> bool {
        !text.is_empty()
            && (self.exact.binary_search_by(|exact| exact.as_str().cmp(text)).is_ok()
                || self.other.iter().any(|pattern| pattern.matches(text)))
    }
}

/// Whether all say the same, and what.
fn alike(mut answers: impl Iterator<Item = bool>) -> Option<bool> {
    let first = answers.next()?;
    answers.all(|answer| answer == first).then_some(first)
}

/// Makes rules ready, and gathers what can't be seen.
struct Reader<'a> {
    sight: Sight,
    trust: &'a TrustDomains<'a>,
    unseen: Vec<String>,
}

impl Reader<'_> {
    fn source(&mut self, source: &Source) -> Vec<Check> {
        let mut checks = Vec::new();
        let trust = self.trust;
        add(&mut checks, ["principals", "notPrincipals"], &source.principals, |them| principal(them, trust));
        add(&mut checks, ["namespaces", "notNamespaces"], &source.namespaces, namespace);
        add(
            &mut checks,
            ["serviceAccounts", "notServiceAccounts"],
            &source.service_accounts,
            service_account,
        );
        add(&mut checks, ["ipBlocks", "notIpBlocks"], &source.ip_blocks, address);
        let fields = ["remoteIpBlocks", "notRemoteIpBlocks"];
        self.of_requests(&mut checks, fields, &source.remote_ip_blocks, remote);
        let fields = ["requestPrincipals", "notRequestPrincipals"];
        self.of_requests(&mut checks, fields, &source.request_principals, |of| {
            Test::RequestPrincipal(patterns(of))
        });
        checks
    }

    fn operation(&mut self, operation: &Operation) -> Vec<Check> {
        let mut checks = Vec::new();
        let to = &mut checks;
        self.of_requests(to, ["hosts", "notHosts"], &operation.hosts, |of| Test::Host(patterns(of)));
        add(to, ["ports", "notPorts"], &operation.ports, port);
        self.of_requests(to, ["methods", "notMethods"], &operation.methods, |of| Test::Method(patterns(of)));
        self.of_requests(to, ["paths", "notPaths"], &operation.paths, |of| Test::Path(of.to_vec()));
        checks
    }

    fn condition(&mut self, condition: &Condition) -> Vec<Check> {
        let mut checks = Vec::new();
        let (to, trust) = (&mut checks, self.trust);
        match condition {
            Condition::SourceIp(of) => add(to, ["source.ip", "source.ip notValues"], of, address),
            Condition::SourceNamespace(of) => {
                add(to, ["source.namespace", "source.namespace notValues"], of, namespace)
            }
            Condition::SourcePrincipal(of) => {
                let fields = ["source.principal", "source.principal notValues"];
                add(to, fields, of, |them| principal(them, trust));
            }
            Condition::SourceServiceAccount(of) => {
                add(to, ["source.serviceAccount", "source.serviceAccount notValues"], of, service_account)
            }
            Condition::DestinationIp(of) => {
                add(to, ["destination.ip", "destination.ip notValues"], of, |blocks| {
                    Test::DestinationIp(blocks.to_vec())
                });
            }
            Condition::DestinationPort(of) => {
                add(to, ["destination.port", "destination.port notValues"], of, port)
            }
            Condition::RemoteIp(of) => self.of_requests(to, ["remote.ip", "remote.ip notValues"], of, remote),
            Condition::Host(of) => {
                let fields = ["request.headers[host]", "request.headers[host] notValues"];
                self.of_requests(to, fields, of, |of| Test::Host(patterns(of)));
            }
            Condition::Method(of) => {
                let fields = ["request.headers[:method]", "request.headers[:method] notValues"];
                self.of_requests(to, fields, of, |of| Test::Method(patterns(of)));
            }
            Condition::Header(name, _) if self.sight == Sight::Connections => {
                self.miss(&format!("request.headers[{name}]"));
            }
            Condition::Header(name, of) => {
                let fields = ["request.headers", "request.headers notValues"];
                add(to, fields, of, |of| Test::Header(name.clone(), patterns(of)));
            }
            Condition::RequestPrincipal(of) => {
                let fields = ["request.auth.principal", "request.auth.principal notValues"];
                self.of_requests(to, fields, of, |of| Test::RequestPrincipal(patterns(of)));
            }
            Condition::RequestAudience(of) => {
                let fields = ["request.auth.audiences", "request.auth.audiences notValues"];
                self.of_requests(to, fields, of, |of| Test::Claim(vec!["aud".to_owned()], patterns(of)));
            }
            Condition::RequestPresenter(of) => {
                let fields = ["request.auth.presenter", "request.auth.presenter notValues"];
                self.of_requests(to, fields, of, |of| Test::Claim(vec!["azp".to_owned()], patterns(of)));
            }
            Condition::Claim(names, _) if self.sight == Sight::Connections => {
                self.miss(&format!("request.auth.claims[{}]", names.join("][")));
            }
            Condition::Claim(names, of) => {
                let fields = ["request.auth.claims", "request.auth.claims notValues"];
                add(to, fields, of, |of| Test::Claim(names.clone(), patterns(of)));
            }
            Condition::Sni(of) => {
                let fields = ["connection.sni", "connection.sni notValues"];
                self.of_requests(to, fields, of, |of| Test::Sni(patterns(of)));
            }
            Condition::Unread(key) => self.miss(key),
        }
        checks
    }

    fn of_requests<T>(
        &mut self,
        checks: &mut Vec<Check>,
        fields: [&'static str; 2],
        of: &Match<T>,
        test: impl Fn(&[T]) -> Test,
    ) {
        if self.sight == Sight::Requests {
            return add(checks, fields, of, test);
        }
        for (there, field) in [(!of.values.is_empty(), fields[0]), (!of.not_values.is_empty(), fields[1])] {
            if there {
                self.miss(field);
            }
        }
    }

    fn miss(&mut self, field: &str) {
        if !self.unseen.iter().any(|seen| seen == field) {
            self.unseen.push(field.to_owned());
        }
    }
}

fn add<T>(checks: &mut Vec<Check>, fields: [&'static str; 2], of: &Match<T>, test: impl Fn(&[T]) -> Test) {
    for (values, field, negated) in [(&of.values, fields[0], false), (&of.not_values, fields[1], true)] {
        if !values.is_empty() {
            checks.push(Check { field, negated, test: test(values) });
        }
    }
}

fn principal(patterns: &[Pattern], trust: &TrustDomains<'_>) -> Test {
    Test::Principal(Patterns::new(patterns.iter().flat_map(|pattern| trust.expand(pattern))))
}

fn namespace(of: &[Pattern]) -> Test {
    Test::Namespace(patterns(of))
}

fn patterns(of: &[Pattern]) -> Patterns {
    Patterns::new(of.iter().cloned())
}

fn address(blocks: &[IpBlock]) -> Test {
    Test::SourceIp(blocks.to_vec())
}

fn remote(blocks: &[IpBlock]) -> Test {
    Test::RemoteIp(blocks.to_vec())
}

fn service_account(accounts: &[ServiceAccount]) -> Test {
    let mut uris: Vec<_> = accounts.iter().map(|a| format!("ns/{}/sa/{}", a.namespace, a.name)).collect();
    uris.sort();
    Test::ServiceAccount(uris)
}

fn port(ports: &[u16]) -> Test {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    Test::DestinationPort(ports)
}

/// `NAMESPACE/NAME` of `ns/NAMESPACE/sa/NAME`.
fn short(service_account: &str) -> String {
    service_account.replacen("ns/", "", 1).replacen("/sa/", "/", 1)
}

fn few<'a>(values: impl Iterator<Item = &'a dyn fmt::Display>) -> String {
    const SHOWN: usize = 4;
    let values: Vec<_> = values.collect();
    let mut text = values.iter().take(SHOWN).map(|value| value.to_string()).collect::<Vec<_>>().join(", ");
    if let more @ 1.. = values.len().saturating_sub(SHOWN) {
        text += &format!(" and {more} more");
    }
    text
}
