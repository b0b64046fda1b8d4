use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::Request;
use crate::admit::{Judgement, Refused};
use crate::behind::Behind;
use crate::compile::Settings;
use crate::identity::Identity;
use crate::name::NamespacedName;
use crate::policy::{CompiledPolicy, Facts, Layer, Policies, RequestFacts, Sight, TrustDomains};
use crate::service::{Service, ServiceKind};
use crate::snapshot::WorkloadKind;
use crate::waypoint;
use crate::world::World;
use crate::world::security::Target;

type ServiceKey = (ServiceKind, NamespacedName);

/// The AuthorizationPolicies with `targetRefs`, as far as a waypoint judges by them.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestPolicies {
    /// Those for all waypoints, by their class.
    class: Option<Arc<Layer>>,
    /// Those for this waypoint.
    waypoint: Option<Arc<Layer>>,
    services: HashMap<ServiceKey, Arc<Layer>>,
    /// The services with policies that lead to a port of a workload, and by which port of theirs: whoever dials it gets
    /// no further than through them.
    served: HashMap<(WorkloadKind, NamespacedName, u16), Vec<(ServiceKey, u16)>>,
}

impl RequestPolicies {
    pub fn new<'w>(
        world: &World,
        settings: &Settings,
        waypoint: &NamespacedName,
        services: impl Iterator<Item = &'w Arc<Service>>,
    ) -> Self {
        let trust = TrustDomains::new(&settings.trust_domain, &settings.trust_domain_aliases);
        let (mut of_class, mut of_waypoint) = (Vec::new(), Vec::new());
        let mut of_services: HashMap<ServiceKey, Vec<_>> = HashMap::new();
        for policy in world.authorization_policies.values().filter(|policy| !policy.targets.is_empty()) {
            let compiled = Arc::new(CompiledPolicy::new(policy, Sight::Requests, &trust));
            let named = |name: &str| NamespacedName::new(&policy.name.namespace, name);
            for target in &policy.targets {
                let list = match target {
                    Target::Gateway(name) if named(name) == *waypoint => &mut of_waypoint,
                    Target::GatewayClass(name)
                        if waypoint::is_class(name) && policy.name.namespace == settings.root_namespace =>
                    {
                        &mut of_class
                    }
                    Target::Gateway(_) | Target::GatewayClass(_) => continue,
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
        let mut served: HashMap<_, Vec<_>> = HashMap::new();
        for service in services {
            let key = (service.kind, service.name.clone());
            if !of_services.contains_key(&key) {
                continue;
            }
            for (port, endpoint) in
                service.ports.iter().flat_map(|port| port.endpoints.iter().map(move |of| (port, of)))
            {
                let Some(workload) = &endpoint.workload else { continue };
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
        Self { class: layer(of_class), waypoint: layer(of_waypoint), services: services.collect(), served }
    }

    pub fn judge(
        &self,
        target: &Behind,
        client: &Identity,
        address: IpAddr,
        request: Option<&Request<'_>>,
    ) -> Result<Judgement, Refused> {
        if self.class.is_none() && self.waypoint.is_none() && self.services.is_empty() {
            return Ok(Judgement::default());
        }
        let request = request.map(RequestFacts::new);
        let facts = |destination| Facts {
            request: request.as_ref(),
            ..Facts::new(Some(client), address, destination)
        };
        match target {
            Behind::Service { service, dialled: Some(dialled), .. } => {
                self.of_service(Some((service.kind, service.name.clone())), &facts(*dialled))
            }
            Behind::Service { service, port, dialled: None } => {
                let facts = Facts { destination: None, ..facts((Ipv4Addr::UNSPECIFIED, *port).into()) };
                self.of_service(Some((service.kind, service.name.clone())), &facts)
            }
            Behind::Workload { workload, address } => {
                let facts = facts(*address);
                let place = (workload.kind, workload.name.clone(), address.port());
                let Some(services) = self.served.get(&place) else { return self.of_service(None, &facts) };
                // Each of them could have been dialled, and each has its say, as if it had been.
                let mut all = Judgement::default();
                for (service, port) in services {
                    all.add(self.of_service(Some(service.clone()), &Facts { port: *port, ..facts })?);
                }
                Ok(all)
            }
        }
    }

    fn of_service(&self, service: Option<ServiceKey>, facts: &Facts<'_>) -> Result<Judgement, Refused> {
        let of_service = service.and_then(|service| self.services.get(&service).cloned());
        let policies = Policies::new([of_service, self.waypoint.clone(), self.class.clone()]);
        Judgement::of(policies.judge(facts), |denied| denied.explain_by(facts))
    }
}
