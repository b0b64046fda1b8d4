//! What kubelet asks, as far as it matters here: the Container Storage Interface (`csi.v1`) and kubelet's
//! `pluginregistration`. Fields that are not listed are left out of answers and skipped in requests.

use std::collections::HashMap;

use prost::Message;

/// Of the calls that say nothing.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Empty {}

/// `pluginregistration.PluginInfo`.
#[derive(Clone, PartialEq, Message)]
pub struct PluginInfo {
    #[prost(string, tag = "1")]
    pub r#type: String,
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where its services are.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

/// `pluginregistration.RegistrationStatus`.
#[derive(Clone, PartialEq, Message)]
pub struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    #[prost(string, tag = "2")]
    pub error: String,
}

/// `csi.v1.GetPluginInfoResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct DriverInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub vendor_version: String,
}

/// `csi.v1.NodeGetInfoResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct NodeInfo {
    #[prost(string, tag = "1")]
    pub node_id: String,
}

/// `csi.v1.NodePublishVolumeRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct Publish {
    #[prost(string, tag = "4")]
    pub target_path: String,
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    #[prost(map = "string, string", tag = "8")]
    pub volume_context: HashMap<String, String>,
}

/// `csi.v1.NodeUnpublishVolumeRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct Unpublish {
    #[prost(string, tag = "2")]
    pub target_path: String,
}
