//! Where the [`World`](orlop_model::World) comes from: Kubernetes objects, converted once, here.
//!
//! One file per kind holds its conversion. [`ClusterWorld`] watches them in an API server, [`WorldDirectory`] in files;
//! [`WorldFile`] keeps what the API server said last. [`Agents`] leads a person to the agents of a cluster.

#![forbid(unsafe_code)]

pub mod admission;
mod agents;
mod authorization_policy;
mod cluster;
mod config_map;
pub mod controller;
#[cfg(test)]
mod definitions;
mod destination_rule;
mod directory;
mod duration;
mod endpoint_slice;
mod error;
mod extension_provider;
mod field;
mod gateway_api;
mod metadata;
mod namespace;
mod node;
mod object;
mod peer_authentication;
mod pod;
/// What a person can see of a cluster before Orlop is installed there, and after.
pub mod preflight;
mod probes;
mod rate_limit;
mod read;
mod request_authentication;
mod selector;
mod service;
mod service_entry;
mod stand_in;
mod target;
mod telemetry;
mod virtual_service;
mod workload_entry;
mod world_file;
mod written;

pub use agents::{AgentPod, Agents, AgentsError};
pub use cluster::{ClusterError, ClusterWorld, Pods};
pub use directory::{WorldDirectory, read_world};
pub use error::{Place, WorldError};
pub use field::{FieldError, FieldPath};
pub use object::Kinds;
pub use world_file::{WorldFile, WorldFileError};

/// What fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::directory::world;
}
