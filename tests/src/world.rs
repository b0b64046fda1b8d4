use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::objects::{self, MESH_LABEL, PodObject, ServiceSpec};

/// The directory of Kubernetes objects that a testbed's agents watch; every change is atomic.
#[derive(Debug)]
pub struct World {
    dir: PathBuf,
    staging: PathBuf,
    next: AtomicU32,
    namespaces: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
}

impl World {
    pub(crate) fn create(base: &Path) -> Result<Self> {
        let (dir, staging) = (base.join("world"), base.join("staging"));
        for dir in [&dir, &staging] {
            fs::create_dir(dir).with_context(|| format!("creating {}", dir.display()))?;
        }
        Ok(Self { dir, staging, next: AtomicU32::new(0), namespaces: Mutex::default() })
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds a namespace, or replaces its labels.
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels: BTreeMap<_, _> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(&namespace_file(name), &objects::namespace_yaml(name, &labels))?;
        namespaces.insert(name.to_owned(), labels);
        Ok(())
    }

    /// Adds a namespace whose pods are in the mesh, or makes an existing one so.
    pub fn enrolled_namespace(&self, name: &str) -> Result<()> {
        self.namespace(name, &[(MESH_LABEL, "enabled")])
    }

    /// Removes a namespace's object; its pods stay.
    pub fn remove_namespace(&self, name: &str) -> Result<()> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.remove(&namespace_file(name))
    }

    /// Adds or replaces a Service with its EndpointSlices.
    pub fn service(&self, service: &ServiceSpec) -> Result<()> {
        self.write(&service_file(&service.namespace, &service.name), &objects::service_yaml(service))
    }

    /// Removes a Service and its EndpointSlices.
    pub fn remove_service(&self, namespace: &str, name: &str) -> Result<()> {
        self.remove(&service_file(namespace, name))
    }

    /// Writes any text as a file of the world: other kinds of objects, or bad ones.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let staged = self.staging.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let target = self.dir.join(file);
        fs::write(&staged, text).with_context(|| format!("writing {}", staged.display()))?;
        fs::rename(&staged, &target).with_context(|| format!("replacing {}", target.display()))
    }

    /// Removes a file of the world if it is there.
    pub fn remove(&self, file: &str) -> Result<()> {
        match fs::remove_file(self.dir.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {file} from the world"))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn namespace_if_missing(&self, name: &str) -> Result<()> {
        let known = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name);
        if known { Ok(()) } else { self.namespace(name, &[]) }
    }

    pub(crate) fn put_pod(&self, pod: &PodObject) -> Result<()> {
        self.write(&pod_file(&pod.namespace, &pod.name), &objects::pod_yaml(pod))
    }

    pub(crate) fn remove_pod(&self, namespace: &str, name: &str) -> Result<()> {
        self.remove(&pod_file(namespace, name))
    }
}

fn namespace_file(name: &str) -> String {
    format!("namespace.{name}.yaml")
}

fn pod_file(namespace: &str, name: &str) -> String {
    format!("pod.{namespace}.{name}.yaml")
}

fn service_file(namespace: &str, name: &str) -> String {
    format!("service.{namespace}.{name}.yaml")
}
