use crate::compile::Settings;
use crate::name::NamespacedName;
use crate::waypoint::{CLASSES, class_of_service};
use crate::world::security::Target;
use crate::world::{Labels, World};

/// The GatewayClass that every gateway counts as being of.
const GATEWAY_CLASS: &str = "orlop";

/// A gateway, of which only itself knows so much.
#[derive(Clone, Debug)]
pub struct OwnGateway {
    /// The Gateway's name.
    pub name: NamespacedName,
    /// The GatewayClass that it was made for, where somebody says. It goes on counting as being of that, so that a Gateway
    /// that gets another class is never without the policies of both.
    pub class: Option<String>,
    /// Its pod, whose labels selectors ask for.
    pub pod: NamespacedName,
}

/// The proxy whose routes and policies are made ready, as policies name it.
pub(super) struct Own<'a> {
    pub name: &'a NamespacedName,
    classes: Vec<&'a str>,
    selected: Selected<'a>,
    pub root_namespace: &'a str,
}

/// By what a selector selects it.
#[derive(Clone, Copy)]
enum Selected<'a> {
    /// No selector is for it: it stands for nobody but those behind it.
    Never,
    /// These labels; `None` where they are not known.
    By(Option<&'a Labels>),
}

impl<'a> Own<'a> {
    pub fn waypoint(world: &'a World, settings: &'a Settings, name: &'a NamespacedName) -> Self {
        let classes = CLASSES.into_iter().chain(classes(world, name)).collect();
        Self { name, classes, selected: Selected::Never, root_namespace: &settings.root_namespace }
    }

    pub fn gateway(world: &'a World, settings: &'a Settings, gateway: &'a OwnGateway) -> Self {
        let given = gateway.class.as_deref();
        let classes = [GATEWAY_CLASS].into_iter().chain(given).chain(classes(world, &gateway.name)).collect();
        let labels = world.pods.get(&gateway.pod).map(|pod| &pod.labels);
        let selected = Selected::By(labels);
        Self { name: &gateway.name, classes, selected, root_namespace: &settings.root_namespace }
    }

    /// Whether it takes those from outside the mesh, rather than stand before services.
    pub fn is_gateway(&self) -> bool {
        matches!(self.selected, Selected::By(_))
    }

    /// Whether a policy of this name that has such a target is for the proxy itself.
    pub fn is_target(&self, policy: &NamespacedName, target: &Target) -> bool {
        match target {
            Target::Gateway(name) => policy.namespace == self.name.namespace && *name == *self.name.name,
            Target::GatewayClass(name) => {
                policy.namespace == self.root_namespace && self.classes.contains(&name.as_str())
            }
            Target::Service(_) | Target::ServiceEntry(_) => false,
        }
    }

    /// Whether policies of this namespace that name no target may be for it.
    pub fn is_around(&self, namespace: &str) -> bool {
        self.name.namespace == *namespace || self.root_namespace == namespace
    }

    /// Whether a policy of this name without targets is for the proxy itself; `None` where nobody can tell.
    pub fn is_selected(&self, policy: &NamespacedName, selector: &Labels) -> Option<bool> {
        let Selected::By(labels) = self.selected else { return Some(false) };
        if !self.is_around(&policy.namespace) {
            return Some(false);
        }
        if selector.is_empty() {
            return Some(true);
        }
        labels.map(|labels| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
    }
}

/// What its Gateway and its Service say.
fn classes<'a>(world: &'a World, name: &NamespacedName) -> impl Iterator<Item = &'a str> {
    let of_gateway = world.gateways.get(name).map(|gateway| gateway.class.as_str());
    of_gateway.into_iter().chain(class_of_service(world, name))
}
