//! How much there may be at once of what strangers open.

use super::Stage;
use crate::l7::{bounds, h2c};
use crate::mesh::{TIMEOUT, await_value};

#[test]
fn a_connection_has_as_many_streams_as_it_may() {
    let stage = Stage::with(&["--max-streams", "2"], "http2");
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    bounds::refuses_a_third_stream(stage.stranger.connect(stage.address(), TIMEOUT).unwrap());
    stage.record(|record| record["reason"] == "bad_request" && record["direction"] == "gateway");
    let failed = || stage.gateway.metric("orlop_connections_failed_total", &["reason=\"bad_request\""]);
    await_value(1.0, || failed().unwrap());
}
