//! Routes: the semantics that people rely on, each by name, and a slow and obvious reference.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod custom;
mod delegates;
mod destinations;
mod findings;
mod gateway;
mod gateway_api;
mod kept;
mod limits;
mod localities;
mod policies;
mod reference;
mod remote;
mod secured_backends;
mod semantics;
mod streams;
mod support;
mod telemetry;
mod tokens;
mod weights;
