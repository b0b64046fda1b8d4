use crate::compile::Settings;
use crate::service::Proximity;
use crate::text::Text;
use crate::world::{Locality, Node, World};

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Tells how near endpoints are, seen from one node.
pub(crate) struct Neighbourhood<'a> {
    world: &'a World,
    node: &'a str,
    here: Place<'a>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    region: Option<&'a str>,
    zone: Option<&'a str>,
}

impl<'a> Neighbourhood<'a> {
    pub fn new(world: &'a World, settings: &'a Settings) -> Self {
        let node = settings.node.as_str();
        Self { world, node, here: of_node(world, node) }
    }

    /// Of an endpoint on this node, as far as known; `zone` is what its EndpointSlice says.
    pub fn of_pod(&self, node: Option<&str>, zone: Option<&str>) -> Proximity {
        match node.filter(|node| !node.is_empty()) {
            Some(node) if node == self.node => Proximity::Node,
            Some(node) => {
                let of_node = of_node(self.world, node);
                self.of(Place { zone: zone.or(of_node.zone), ..of_node })
            }
            None => self.of(Place { region: None, zone }),
        }
    }

    /// Of a backend that is on no node.
    pub fn of_backend(&self, locality: &Locality) -> Proximity {
        self.of(Place { region: locality.region.as_deref(), zone: locality.zone.as_deref() })
    }

    fn of(&self, there: Place<'_>) -> Proximity {
        let here = self.here;
        let same_region = here.region.is_some() && here.region == there.region;
        // Two regions can have zones of one name; where only one side says its region, the zone's name decides.
        let other_region = here.region.is_some() && there.region.is_some() && !same_region;
        if here.zone.is_some() && here.zone == there.zone && !other_region {
            Proximity::Zone
        } else if same_region {
            Proximity::Region
        } else {
            Proximity::Elsewhere
        }
    }
}

fn of_node<'a>(world: &'a World, name: &str) -> Place<'a> {
    place(world.nodes.get(name).map(|node| &**node))
}

/// Where a node is; nowhere, if there is none.
pub(crate) fn place(node: Option<&Node>) -> Place<'_> {
    let Some(node) = node else { return Place::default() };
    let label = |key| node.labels.get(key).map(Text::as_str).filter(|value| !value.is_empty());
    Place { region: label(REGION), zone: label(ZONE) }
}
