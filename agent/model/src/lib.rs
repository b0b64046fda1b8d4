//! The world in plain types, compiled into an immutable [`Snapshot`] that answers as pure functions.
//!
//! `orlop-kube` turns Kubernetes objects into a [`World`]; [`compile`] turns that into a [`Snapshot`]; the data
//! path and the proxy ask the snapshot. Absent on purpose: tokio, Kubernetes types, clocks, randomness and IO.
//! Whatever an answer needs of those comes in as an argument.

#![forbid(unsafe_code)]

mod addresses;
mod admit;
mod allocation;
mod authorize;
pub mod base64;
mod behind;
mod change;
mod compile;
mod dns;
mod endpoints;
pub mod gateway;
mod hosts;
pub mod http;
mod identity;
mod inbound;
pub mod json;
mod local;
mod local_service;
mod locality;
pub mod map;
mod mutual_tls;
mod name;
mod optin;
mod owner;
mod policy;
pub mod ports;
mod reason;
mod route;
mod same_node;
mod service;
mod service_entry;
mod snapshot;
mod speaks;
mod text;
mod waypoint;
mod workloads;
pub mod world;

pub use addresses::Addresses;
pub use admit::{Caller, Judgement, Refused};
pub use authorize::{Allowed, Connection, Denied, DryRun, Outcome};
pub use behind::{Behind, Entrance};
pub use compile::{DEFAULT_ROOT_NAMESPACE, Settings, compile, compile_after, compile_resolved, uids_in_mesh};
pub use dns::{Answer, Record, RecordData, RecordType};
pub use hosts::{Hosts, hosts_of};
pub use identity::{Identity, IdentityError, TrustDomain};
pub use inbound::admit_connect;
pub use local::Outsider;
pub use local_service::{LocalService, MAX_LOCAL_ENDPOINTS};
pub use map::Map;
pub use name::{NameError, NamespacedName};
pub use optin::opted_in;
pub use owner::Names;
pub use policy::{Concern, Finding, FindingReason, ListedPolicy, Severity};
pub use reason::Reason;
pub use route::{Balance, Choice, Route, Transport};
pub use same_node::SameNode;
pub use service::{Endpoint, Proximity, Service, ServiceKind, ServicePort};
pub use snapshot::{LocalPod, Snapshot, Workload, WorkloadKind};
pub use speaks::Declared;
pub use text::Text;
pub use waypoint::Hop;
pub use world::World;
pub use world::security::Mode;
