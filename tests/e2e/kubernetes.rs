//! Orlop and a real Kubernetes control plane.
//!
//! All tests of a run share one, so each keeps to namespaces of its own.

mod api;
mod authority;
mod boot_gate;
mod chart;
mod check;
mod conditions;
mod control_plane;
mod controller;
mod dashboards;
mod definitions;
mod enrolment;
mod explain;
mod gateway_api;
mod gateways;
mod hostile;
mod ingress;
pub mod install;
mod istio_ca;
mod kubelet;
mod large;
mod last_world;
mod node;
mod outage;
mod replica;
mod resumption;
mod rights;
mod source;
mod status;
mod strays;
mod told;
mod waypoint;
mod webhook;
