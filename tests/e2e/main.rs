//! End-to-end suites on real sockets and a real kernel; one module each.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod attacks;
mod boot_gate;
mod changed;
mod chart;
mod check;
mod completion;
mod dns;
mod failclosed;
mod fairness;
mod flows;
mod gateway;
mod handover;
mod hbone;
mod integrity;
mod keeper;
mod kubernetes;
mod l7;
mod layouts;
mod limits;
mod mesh;
mod names;
mod pair;
mod pattern;
mod peer;
mod policy;
mod probes;
mod readme;
mod redirect;
mod remote_ca;
mod revocation;
mod samenode;
mod scale;
mod seeing;
mod services;
mod strict;
mod testbed;
mod trust;
mod tunnel;
mod udp;
mod upgrade;
mod waypoint;
mod world;
