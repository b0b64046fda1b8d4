use crate::compile::Settings;
use crate::service::Proximity;
use crate::text::Text;
use crate::world::{Locality, Node, World};

/// The label of a node's region.
pub(crate) const REGION: &str = "topology.kubernetes.io/region";
/// The label of a node's zone.
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";
/// The label of a node's subzone, which is Istio's.
pub(crate) const SUBZONE: &str = "topology.istio.io/subzone";

/// Tells where endpoints are and how near, seen from one node.
pub(crate) struct Neighbourhood<'a> {
    world: &'a World,
    node: &'a str,
    here: Locality,
}

impl<'a> Neighbourhood<'a> {
    pub fn new(world: &'a World, settings: &'a Settings) -> Self {
        let node = settings.node.as_str();
        Self { world, node, here: of_node(world, node) }
    }

    /// Of an endpoint on this node, as far as known; `zone` is what its EndpointSlice says.
    pub fn of_pod(&self, node: Option<&str>, zone: Option<&Text>) -> (Proximity, Locality) {
        match node.filter(|node| !node.is_empty()) {
            Some(node) if node == self.node => (Proximity::Node, self.here.clone()),
            Some(node) => {
                let of_node = of_node(self.world, node);
                self.of(Locality { zone: zone.cloned().or(of_node.zone), ..of_node })
            }
            None => self.of(Locality { zone: zone.cloned(), ..Locality::default() }),
        }
    }

    /// Of a backend that is on no node.
    pub fn of_backend(&self, locality: &Locality) -> (Proximity, Locality) {
        self.of(locality.clone())
    }

    fn of(&self, there: Locality) -> (Proximity, Locality) {
        let here = &self.here;
        let same_region = here.region.is_some() && here.region == there.region;
        // Two regions can have zones of one name; where only one side says its region, the zone's name decides.
        let other_region = here.region.is_some() && there.region.is_some() && !same_region;
        let proximity = if here.zone.is_some() && here.zone == there.zone && !other_region {
            Proximity::Zone
        } else if same_region {
            Proximity::Region
        } else {
            Proximity::Elsewhere
        };
        (proximity, there)
    }
}

/// Where a node of this name is.
pub(crate) fn of_node(world: &World, name: &str) -> Locality {
    place(world.nodes.get(name).map(|node| &**node))
}

/// Where a node is; nowhere, if there is none.
pub(crate) fn place(node: Option<&Node>) -> Locality {
    let Some(node) = node else { return Locality::default() };
    let label = |key| node.labels.get(key).filter(|value| !value.is_empty()).cloned();
    Locality { region: label(REGION), zone: label(ZONE), subzone: label(SUBZONE) }
}
