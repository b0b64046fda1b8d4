//! The testbed: nodes and pods made of network namespaces, veth pairs and bridges on one machine.
//!
//! A [`Testbed`] owns everything it makes; dropping it removes everything, also while a test panics.
//! All names carry the owner's process id and start time, so [`sweep`] can tell what a dead run left
//! behind from what a living one still uses. Needs root and iproute2, nothing else.
//!
//! ```no_run
//! use orlop_tests::{PodSpec, Testbed};
//!
//! fn main() -> anyhow::Result<()> {
//!     let testbed = Testbed::new()?;
//!     testbed.world().enrolled_namespace("shop")?;
//!     let node = testbed.node("n1")?;
//!     let web = node.pod("shop", "web", PodSpec::new().label("app", "web"))?;
//!     let _agent = node.agent(Default::default())?;
//!     let _server = web.serve_http(8080)?;
//!     Ok(())
//! }
//! ```

mod agent;
mod capture;
mod cgroup;
mod control_plane;
mod deploy_tools;
mod greed;
mod id;
mod image;
mod kube_node;
mod kubelet;
mod load;
mod netns;
mod node;
mod objects;
mod pod;
mod process;
pub mod protobuf;
mod relay;
mod sweep;
mod testbed;
pub mod traffic;
mod waypoint;
mod world;
mod ztunnel;

pub use agent::{ADMIN_PORT, METRICS_PORT};
pub use agent::{Agent, AgentOptions, READY_PORT, binary, wait_for};
pub use capture::{Capture, Frames};
pub use control_plane::{ControlPlane, DetachedControlPlane, start_detached, stop_detached};
pub use control_plane::{build as build_control_plane, control_plane_binary, published_definitions};
pub use deploy_tools::DeployTools;
pub use greed::{Greed, call_times, call_times_while, raise_descriptors};
pub use image::{EPOCH, Image, Layout};
pub use kube_node::{BUSYBOX, KubeNode, can_run_nodes};
pub use kubelet::{CgroupDriver, ContainerRuntime, PodCgroups};
pub use load::{Iperf3, Iperf3Server, Requests, WrkOptions, h2load, iperf3, wrk};
pub use node::Node;
pub use objects::{Endpoint, ServicePort, ServiceSpec, TargetPort};
pub use pod::{Pod, PodSpec};
pub use process::Process;
pub use relay::Relay;
pub use sweep::{leftovers, leftovers_of, sweep};
pub use testbed::Testbed;
pub use waypoint::Waypoint;
pub use world::World;
pub use ztunnel::Ztunnel;
