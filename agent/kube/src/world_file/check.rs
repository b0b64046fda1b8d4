use orlop_model::NamespacedName;
use orlop_model::world::{Backend, World};

use crate::metadata::{label, subdomain};

/// Names become identities, host names and metrics: whoever wrote the file, they are such as the API server has.
pub(super) fn check(world: &World) -> Result<(), String> {
    for name in world.namespaces.keys() {
        valid(label(name, "namespace"))?;
    }
    for name in world.nodes.keys() {
        valid(subdomain(name, "node"))?;
    }
    for (name, pod) in &world.pods {
        named(name, &pod.name)?;
        valid(subdomain(&pod.service_account, "service account"))?;
    }
    for (name, service) in &world.services {
        named(name, &service.name)?;
    }
    for (name, slice) in &world.endpoint_slices {
        named(name, &slice.name)?;
    }
    for (name, entry) in &world.service_entries {
        named(name, &entry.name)?;
        entry.endpoints.iter().try_for_each(backend)?;
    }
    for (name, entry) in &world.workload_entries {
        named(name, &entry.name)?;
        backend(&entry.backend)?;
    }
    for (name, policy) in &world.authorization_policies {
        named(name, &policy.name)?;
    }
    for (name, policy) in &world.peer_authentications {
        named(name, &policy.name)?;
    }
    Ok(())
}

fn backend(backend: &Backend) -> Result<(), String> {
    valid(subdomain(&backend.service_account, "service account"))
}

/// An object is found by its own name.
fn named(key: &NamespacedName, name: &NamespacedName) -> Result<(), String> {
    if key != name {
        return Err(format!("can't be understood: {name} is there as {key}"));
    }
    valid(label(&name.namespace, "namespace"))?;
    valid(subdomain(&name.name, "name"))
}

fn valid(checked: Result<(), crate::field::FieldError>) -> Result<(), String> {
    checked.map_err(|error| format!("can't be understood: {error}"))
}
