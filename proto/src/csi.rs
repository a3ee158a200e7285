//! The messages between the kubelet and a CSI driver, as far as a driver of ephemeral inline volumes needs them.
//!
//! Owns names, types and field numbers: those of `csi.v1` (container-storage-interface/spec, `csi.proto`) and of the
//! kubelet's `pluginregistration` (k8s.io/kubelet, `pluginregistration/v1/api.proto`). Fields that are not here are skipped
//! when they arrive: secrets above all, which therefore never stay in memory. It never speaks gRPC.

use std::collections::HashMap;

pub use prost::Message;

/// `pluginregistration.InfoRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InfoRequest {}

/// `pluginregistration.PluginInfo`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PluginInfo {
    /// `CSIPlugin`
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// The driver's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The path of the driver's own socket.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    /// Of the CSI specification.
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

/// `pluginregistration.RegistrationStatus`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RegistrationStatus {
    /// Whether the kubelet uses the driver now.
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    /// Why not.
    #[prost(string, tag = "2")]
    pub error: String,
}

/// `pluginregistration.RegistrationStatusResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RegistrationStatusResponse {}

/// `csi.v1.GetPluginInfoRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GetPluginInfoRequest {}

/// `csi.v1.GetPluginInfoResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GetPluginInfoResponse {
    /// The driver's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The driver's version.
    #[prost(string, tag = "2")]
    pub vendor_version: String,
}

/// `csi.v1.GetPluginCapabilitiesRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GetPluginCapabilitiesRequest {}

/// `csi.v1.GetPluginCapabilitiesResponse`, without any.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GetPluginCapabilitiesResponse {}

/// `csi.v1.ProbeRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ProbeRequest {}

/// `csi.v1.ProbeResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ProbeResponse {
    /// A `google.protobuf.BoolValue`.
    #[prost(message, optional, tag = "1")]
    pub ready: Option<bool>,
}

/// `csi.v1.NodeGetInfoRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeGetInfoRequest {}

/// `csi.v1.NodeGetInfoResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeGetInfoResponse {
    /// The node's name.
    #[prost(string, tag = "1")]
    pub node_id: String,
    /// 0: as many as the kubelet likes.
    #[prost(int64, tag = "2")]
    pub max_volumes_per_node: i64,
}

/// `csi.v1.NodeGetCapabilitiesRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeGetCapabilitiesRequest {}

/// `csi.v1.NodeGetCapabilitiesResponse`, without any: no staging, no statistics, no expansion.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeGetCapabilitiesResponse {}

/// `csi.v1.NodePublishVolumeRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodePublishVolumeRequest {
    /// Made up by the kubelet for an inline volume: `csi-` and a hash.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where the volume shall appear.
    #[prost(string, tag = "4")]
    pub target_path: String,
    /// `readOnly` of the pod's volume.
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    /// What the kubelet asserts (`csi.storage.k8s.io/...`), and the pod's own `volumeAttributes`.
    #[prost(map = "string, string", tag = "8")]
    pub volume_context: HashMap<String, String>,
}

/// `csi.v1.NodePublishVolumeResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodePublishVolumeResponse {}

/// `csi.v1.NodeUnpublishVolumeRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeUnpublishVolumeRequest {
    /// As in the publish.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// As in the publish.
    #[prost(string, tag = "2")]
    pub target_path: String,
}

/// `csi.v1.NodeUnpublishVolumeResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeUnpublishVolumeResponse {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a publish request as a kubelet encodes it, byte by byte: fields 1, 4, 6 and 8 of csi.proto.
    /// Guarantees: each field has the specification's number, which a test that encodes with the same type cannot tell.
    #[test]
    fn a_publish_request_has_the_field_numbers_of_the_specification() {
        let bytes = b"\x0a\x02id\x22\x02/t\x2a\x00\x30\x01\x42\x06\x0a\x01k\x12\x01v";
        let request = NodePublishVolumeRequest::decode(&bytes[..]).unwrap();
        assert_eq!((request.volume_id.as_str(), request.target_path.as_str(), request.readonly), ("id", "/t", true));
        assert_eq!(request.volume_context.get("k").map(String::as_str), Some("v"));
    }
}
