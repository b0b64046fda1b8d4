//! A hand-made HBONE peer and one real agent: what is on the wire is HBONE as other meshes speak it.

mod agent_dials;
mod agent_serves;

use std::sync::Arc;

use h2::server::Builder;
use rustls::ServerConfig;

use crate::hbone::{Peer, Reply, identities, identity};
use crate::mesh::Mesh;

const MIB: u32 = 1 << 20;

/// A peer in the place of the server's agent, with the server's own identity.
fn peer(mesh: &Mesh, http: &Builder, reply: Reply) -> Peer {
    Peer::start(&mesh.server, server_config(mesh), http.clone(), reply)
}

fn server_config(mesh: &Mesh) -> Arc<ServerConfig> {
    identities(&mesh.testbed, &["server"]).server_config(&identity("server")).unwrap()
}
