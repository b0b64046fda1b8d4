//! Where the [`World`](orlop_model::World) comes from: Kubernetes objects, converted once, here.
//!
//! One file per kind holds its conversion. [`WorldDirectory`] reads the objects from files and watches them.

#![forbid(unsafe_code)]

mod authorization_policy;
pub mod controller;
mod destination_rule;
mod directory;
mod duration;
mod endpoint_slice;
mod error;
mod field;
mod metadata;
mod namespace;
mod node;
mod peer_authentication;
mod pod;
mod selector;
mod service;
mod service_entry;
mod virtual_service;
mod workload_entry;

pub use directory::{WorldDirectory, read_world};
pub use error::{Place, WorldError};
pub use field::{FieldError, FieldPath};

/// What fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::directory::world;
}
