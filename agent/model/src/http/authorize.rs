use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::Request;
use super::authentication::Authentications;
use super::forwarded::Gateways;
use super::limit::{Counted, Limits};
use super::own::Own;
use super::token::{Claims, NoTokens, TokenRules, Tokens};
use crate::admit::{Judgement, Refused};
use crate::behind::Behind;
use crate::compile::Settings;
use crate::identity::Identity;
use crate::name::NamespacedName;
use crate::policy::{
    CompiledPolicy, Facts, Finding, Layer, Policies, RequestFacts, ToAsk, Token, TrustDomains,
};
use crate::reason::Reason;
use crate::service::{Service, ServiceKind};
use crate::snapshot::{Workload, WorkloadKind};
use crate::world::security::{AuthorizationPolicy, Target};
use crate::world::stream::Sni;
use crate::world::{ExtensionProvider, World};

pub(super) type ServiceKey = (ServiceKind, NamespacedName);

/// The AuthorizationPolicies with `targetRefs`, as far as a waypoint judges by them; of a gateway, also those without that
/// select its pods.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestPolicies {
    /// Those for all waypoints of its class.
    class: Option<Arc<Layer>>,
    /// Those for this waypoint.
    waypoint: Option<Arc<Layer>>,
    services: HashMap<ServiceKey, Arc<Layer>>,
    /// Those without targets that select the pods of a gateway: for the mesh, for its namespace, or by labels.
    selecting: Option<Arc<Layer>>,
    /// One of which nobody can tell whether it selects them.
    undecided: Option<Arc<NamespacedName>>,
    /// The services with policies that lead to a port of a workload, and by which port of theirs: whoever dials it gets
    /// no further than through them.
    served: HashMap<(WorkloadKind, NamespacedName, u16), Vec<(ServiceKey, u16)>>,
    /// Whether somebody may have to be asked.
    pub asks: bool,
    /// Whose tokens are taken.
    pub authentications: Authentications,
    /// How many requests may be made.
    pub limits: Limits,
    /// Who may say for whom he asks.
    gateways: Gateways,
}

impl RequestPolicies {
    /// `services` are those whose policies it is to judge by.
    pub fn new<'w>(
        world: &World,
        settings: &Settings,
        own: &Own<'_>,
        services: impl Iterator<Item = &'w Arc<Service>>,
    ) -> Self {
        let trust = TrustDomains::new(&settings.trust_domain, &settings.trust_domain_aliases);
        let (mut of_class, mut of_waypoint) = (Vec::new(), Vec::new());
        let mut of_services: HashMap<ServiceKey, Vec<_>> = HashMap::new();
        let mut asks = false;
        let compile = |policy: &AuthorizationPolicy, asks: &mut bool| {
            let compiled = Arc::new(CompiledPolicy::of_waypoint(policy, world, settings, &trust));
            *asks |= compiled.provider.is_some();
            compiled
        };
        let (mut selecting, mut undecided) = (Vec::new(), None);
        for policy in world.authorization_policies.values().filter(|policy| policy.targets.is_empty()) {
            match own.is_selected(&policy.name, &policy.selector) {
                Some(true) => selecting.push(compile(policy, &mut asks)),
                Some(false) => {}
                None => undecided = Some(Arc::new(policy.name.clone())),
            }
        }
        for policy in world.authorization_policies.values().filter(|policy| !policy.targets.is_empty()) {
            let compiled = compile(policy, &mut asks);
            let named = |name: &str| NamespacedName::new(&policy.name.namespace, name);
            for target in &policy.targets {
                let list = match target {
                    Target::Gateway(_) if own.is_target(&policy.name, target) => &mut of_waypoint,
                    Target::GatewayClass(_) if own.is_target(&policy.name, target) => &mut of_class,
                    Target::Gateway(_) | Target::GatewayClass(_) => continue,
                    // Whoever stands before the service judges by them, and the gateway is its client.
                    Target::Service(_) | Target::ServiceEntry(_) if own.is_gateway() => continue,
                    Target::Service(name) => {
                        of_services.entry((ServiceKind::Service, named(name))).or_default()
                    }
                    Target::ServiceEntry(name) => {
                        of_services.entry((ServiceKind::ServiceEntry, named(name))).or_default()
                    }
                };
                list.push(compiled.clone());
            }
        }
        let authentications = Authentications::new(world, own);
        let limits = Limits::new(world, own, &trust);
        let mut served: HashMap<_, Vec<_>> = HashMap::new();
        for service in services {
            let key = (service.kind, service.name.clone());
            if !of_services.contains_key(&key) && !authentications.names(&key) && !limits.names(&key) {
                continue;
            }
            for (port, endpoint) in
                service.ports.iter().flat_map(|port| port.endpoints.iter().map(move |of| (port, of)))
            {
                // Another namespace's word does not count for it.
                let its_own = |workload: &&Arc<Workload>| workload.name.namespace == service.name.namespace;
                let Some(workload) = endpoint.workload.as_ref().filter(its_own) else { continue };
                // By whichever of its addresses.
                let place = (workload.kind, workload.name.clone(), endpoint.address.port());
                let services: &mut Vec<_> = served.entry(place).or_default();
                let entry = (key.clone(), port.number);
                if !services.contains(&entry) {
                    services.push(entry);
                }
            }
        }
        let layer = |policies: Vec<_>| (!policies.is_empty()).then(|| Arc::new(Layer::new(policies)));
        let services = of_services.into_iter().map(|(key, policies)| (key, Arc::new(Layer::new(policies))));
        Self {
            class: layer(of_class),
            waypoint: layer(of_waypoint),
            services: services.collect(),
            selecting: layer(selecting),
            undecided,
            served,
            asks,
            authentications,
            limits,
            gateways: Gateways::new(world, &settings.trust_domain),
        }
    }

    /// What the tokens of requests for this are judged by: of a workload, by each of its services.
    pub fn token_rules(&self, target: &Behind) -> Vec<Arc<TokenRules>> {
        let mut all: Vec<Arc<TokenRules>> = Vec::new();
        for service in self.services_of(target) {
            let rules = self.authentications.of(service.as_ref().map(|(service, _)| service));
            all.extend(rules.filter(|rules| !all.contains(rules)).cloned());
        }
        all
    }

    pub fn judge(
        &self,
        target: &Behind,
        client: Option<&Identity>,
        address: IpAddr,
        request: Option<&Request<'_>>,
        tokens: &dyn Tokens,
        passed: &[Arc<ExtensionProvider>],
    ) -> Result<Judgement, Refused> {
        let request = request.map(RequestFacts::new);
        let facts = Facts { passed, ..self.facts(target, client, address, request.as_ref()) };
        self.judge_facts(target, &facts, tokens)
    }

    /// Of a connection in which no HTTP is read.
    pub fn judge_stream(
        &self,
        target: &Behind,
        client: Option<&Identity>,
        address: IpAddr,
        sni: Sni<'_>,
    ) -> Result<Judgement, Refused> {
        let facts = Facts { sni, ..self.facts(target, client, address, None) };
        self.judge_facts(target, &facts, &NoTokens)
    }

    /// Whether the name in the client's TLS may decide.
    pub fn want_sni(&self, target: &Behind, client: Option<&Identity>, address: IpAddr) -> bool {
        let facts = self.facts(target, client, address, None);
        self.services_of(target).into_iter().any(|service| {
            let port = service.as_ref().map_or(facts.port, |(_, port)| *port);
            self.policies_of(service.map(|(service, _)| service)).want_sni(&Facts { port, ..facts })
        })
    }

    /// Whether anything but AuthorizationPolicies has a say on requests for a service.
    pub fn read_requests(&self, service: &Arc<Service>, port: u16) -> bool {
        let target = Behind::Service { service: service.clone(), port, dialled: None };
        let key = (service.kind, service.name.clone());
        let rules = self.authentications.of(Some(&key));
        rules.is_some_and(|rules| !rules.rules.is_empty())
            || self.limits.unreadable(&target, Some(&key)).is_some()
            || self.limits.are_for(&key)
    }

    fn judge_facts(
        &self,
        target: &Behind,
        facts: &Facts<'_>,
        tokens: &dyn Tokens,
    ) -> Result<Judgement, Refused> {
        if let Some(name) = &self.undecided {
            return Err(undecided(name));
        }
        let layers = [&self.class, &self.waypoint, &self.selecting];
        let unasked = layers.iter().all(|layer| layer.is_none()) && self.services.is_empty();
        if unasked && self.authentications.is_empty() {
            return Ok(Judgement::default());
        }
        if let Some(name) = self.authentications.unreadable(target) {
            return Err(unreadable(name));
        }
        // Each of a workload's services could have been dialled, and each has its say, as if it had been.
        let mut all = Judgement::default();
        for service in self.services_of(target) {
            let port = service.as_ref().map_or(facts.port, |(_, port)| *port);
            let service = service.map(|(service, _)| service);
            all.add(self.of_service(service, &Facts { port, ..*facts }, tokens)?);
        }
        Ok(all)
    }

    /// Who is to be asked about it, by the policies of each service that it may have meant.
    pub fn to_ask(
        &self,
        target: &Behind,
        client: Option<&Identity>,
        address: IpAddr,
        request: &Request<'_>,
        tokens: &dyn Tokens,
    ) -> Result<Vec<ToAsk>, Refused> {
        let mut found: Vec<ToAsk> = Vec::new();
        if !self.asks {
            return Ok(found);
        }
        let request = RequestFacts::new(request);
        let facts = self.facts(target, client, address, Some(&request));
        for service in self.services_of(target) {
            let port = service.as_ref().map_or(facts.port, |(_, port)| *port);
            let service = service.map(|(service, _)| service);
            let verified = self.verified(service.as_ref(), &facts, tokens)?;
            let facts = Facts { port, token: token(&verified), ..facts };
            let new = self.policies_of(service).to_ask(&facts);
            found.extend(new.into_iter().filter(|new| !found.contains(new)).collect::<Vec<_>>());
        }
        Ok(found)
    }

    /// What it counts for, of each service that it may have meant.
    pub fn limits(
        &self,
        target: &Behind,
        client: Option<&Identity>,
        address: IpAddr,
        request: &Request<'_>,
        tokens: &dyn Tokens,
    ) -> Result<Vec<Counted>, Refused> {
        let mut counted = Vec::new();
        if self.limits.is_empty() {
            return Ok(counted);
        }
        let request = RequestFacts::new(request);
        let facts = self.facts(target, client, address, Some(&request));
        for service in self.services_of(target) {
            let port = service.as_ref().map_or(facts.port, |(_, port)| *port);
            let service = service.map(|(service, _)| service);
            if let Some(name) = self.limits.unreadable(target, service.as_ref()) {
                let detail = format!(
                    "RateLimit {name} can't be understood: until it can, nothing passes where it is for"
                );
                let (reason, judgement) = (Reason::RateLimitUnavailable, Judgement::default());
                return Err(Refused { reason, detail, judgement });
            }
            let verified = self.verified(service.as_ref(), &facts, tokens)?;
            let facts = Facts { port, token: token(&verified), ..facts };
            self.limits.count(service.as_ref(), &facts, &mut counted);
        }
        Ok(counted)
    }

    /// What their authors should know of policies that ask for what is in tokens.
    pub fn findings(&self, world: &World, own: &Own<'_>) -> Vec<Finding> {
        let mut found = self.authentications.findings(world, own);
        found.extend(self.limits.findings(world, own, &self.authentications));
        found
    }

    /// The services whose policies count for this, and their ports; none where only the waypoint's do.
    fn services_of(&self, target: &Behind) -> Vec<Option<(ServiceKey, u16)>> {
        match target {
            Behind::Service { service, port, .. } => {
                vec![Some(((service.kind, service.name.clone()), *port))]
            }
            Behind::Workload { workload, address } => {
                let place = (workload.kind, workload.name.clone(), address.port());
                match self.served.get(&place) {
                    Some(services) => services.iter().cloned().map(Some).collect(),
                    None => vec![None],
                }
            }
            Behind::Gateway { .. } => vec![None],
        }
    }

    fn of_service(
        &self,
        service: Option<ServiceKey>,
        facts: &Facts<'_>,
        tokens: &dyn Tokens,
    ) -> Result<Judgement, Refused> {
        let rules = self.authentications.of(service.as_ref());
        if let Some(name) = rules.and_then(|rules| rules.unreadable.as_ref()) {
            return Err(unreadable(name));
        }
        let verified = self.verified(service.as_ref(), facts, tokens)?;
        let facts = Facts { token: token(&verified), ..*facts };
        Judgement::of(self.policies_of(service).judge(&facts), |denied| denied.explain_by(&facts))
    }

    fn policies_of(&self, service: Option<ServiceKey>) -> Policies {
        // No proxy has both: those of services are not for a gateway.
        let of_service = service.and_then(|service| self.services.get(&service).cloned());
        Policies::new([
            of_service.or_else(|| self.selecting.clone()),
            self.waypoint.clone(),
            self.class.clone(),
        ])
    }

    /// What a request's token says by what is asked of it for this service; `None` where nobody asks for any.
    fn verified(
        &self,
        service: Option<&ServiceKey>,
        facts: &Facts<'_>,
        tokens: &dyn Tokens,
    ) -> Result<Option<Option<Arc<Claims>>>, Refused> {
        let rules = self.authentications.of(service);
        match rules.filter(|rules| facts.request.is_some() && !rules.rules.is_empty()) {
            Some(rules) => tokens.verified(rules).map(Some).map_err(|refused| Refused {
                reason: refused.reason,
                detail: refused.detail,
                judgement: Judgement::default(),
            }),
            None => Ok(None),
        }
    }

    fn facts<'a>(
        &self,
        target: &'a Behind,
        client: Option<&'a Identity>,
        address: IpAddr,
        request: Option<&'a RequestFacts<'a>>,
    ) -> Facts<'a> {
        // What is read as HTTP is no TLS.
        let sni = if request.is_some() { Sni::Absent } else { Sni::Unknown };
        let remote = self.gateways.remote(client, address, request.map(|request| request.headers));
        let facts = |destination| Facts { request, sni, remote, ..Facts::new(client, address, destination) };
        match target {
            Behind::Service { dialled: Some(dialled), .. } => facts(*dialled),
            Behind::Service { port, dialled: None, .. } => {
                Facts { destination: None, ..facts((Ipv4Addr::UNSPECIFIED, *port).into()) }
            }
            Behind::Workload { address, .. } => facts(*address),
            Behind::Gateway { address, entrance, .. } => Facts { sni: entrance.sni(), ..facts(*address) },
        }
    }
}

fn token(verified: &Option<Option<Arc<Claims>>>) -> Token<'_> {
    match verified {
        None => Token::Untold,
        Some(None) => Token::Missing,
        Some(Some(claims)) => Token::Verified(claims),
    }
}

fn unreadable(name: &NamespacedName) -> Refused {
    let detail = format!(
        "RequestAuthentication {name} can't be understood: until it can, nothing passes where it is for"
    );
    Refused { reason: Reason::PolicyDenied, detail, judgement: Judgement::default() }
}

fn undecided(name: &Arc<NamespacedName>) -> Refused {
    let detail = format!(
        "AuthorizationPolicy {name} may select this gateway's pods, whose labels are not known: until they are, nothing \
         passes"
    );
    let judgement = Judgement { policy: Some(Arc::clone(name)), ..Judgement::default() };
    Refused { reason: Reason::PolicyDenied, detail, judgement }
}
