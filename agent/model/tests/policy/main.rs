//! AuthorizationPolicy and PeerAuthentication: decisions, explanations and findings.

#![allow(clippy::unwrap_used)]

mod decisions;
mod explanations;
mod findings;
mod mutual_tls;
mod reference;
mod same_node;
mod scopes;
mod support;
