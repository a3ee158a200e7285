//! The part of a kubelet that talks to CSI drivers: gRPC over Unix sockets, and the directories that it makes.
//!
//! It calls what the real one calls, in that order, with the same paths and the same keys, and keeps the same habits: it makes
//! the parent of a target and `vol_data.json`, and removes its directory after an unpublish only if it is empty.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pillion_proto::csi::{
    GetPluginInfoRequest, GetPluginInfoResponse, InfoRequest, Message, NodeGetInfoRequest, NodeGetInfoResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    PluginInfo, ProbeRequest, ProbeResponse, RegistrationStatus, RegistrationStatusResponse,
};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// A call that takes longer has failed. The real one has two minutes.
const CALL_MAX: Duration = Duration::from_secs(60);

/// Its directories, and its side of the conversation.
#[derive(Debug)]
pub struct Kubelet {
    dir: PathBuf,
    runtime: Runtime,
}

/// An inline volume of a pod.
#[derive(Debug, Clone)]
pub struct Volume {
    /// `metadata.uid` of the pod.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// The name of the volume in its spec.
    pub volume: String,
    /// `readOnly` of the volume.
    pub read_only: bool,
    /// `volumeAttributes`.
    pub attributes: Vec<(String, String)>,
}

/// Why a call failed: what becomes an event of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `grpc-status`.
    pub code: u32,
    /// `grpc-message`.
    pub message: String,
}

/// What registration has told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// The driver's name.
    pub name: String,
    /// Where it is called.
    pub endpoint: PathBuf,
    /// The node's name, as the driver has it.
    pub node_id: String,
}

impl Volume {
    /// One as the injection makes it.
    pub fn of(uid: &str, namespace: &str, pod: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            volume: "pillion".to_owned(),
            read_only: true,
            attributes: Vec::new(),
        }
    }

    /// What the kubelet sends, with the pod's own attributes first: its own keys win.
    pub fn request(&self, kubelet_dir: &Path) -> NodePublishVolumeRequest {
        let mut context: Vec<(String, String)> = self.attributes.clone();
        for (key, value) in [
            ("pod.name", self.pod.as_str()),
            ("pod.namespace", &self.namespace),
            ("pod.uid", &self.uid),
            ("serviceAccount.name", "default"),
            ("ephemeral", "true"),
        ] {
            context.push((format!("csi.storage.k8s.io/{key}"), value.to_owned()));
        }
        NodePublishVolumeRequest {
            volume_id: self.id(),
            target_path: self.mount(kubelet_dir).display().to_string(),
            readonly: self.read_only,
            volume_context: context.into_iter().collect(),
        }
    }

    /// The target path: where the driver puts its sockets.
    pub fn mount(&self, kubelet_dir: &Path) -> PathBuf {
        self.dir(kubelet_dir).join("mount")
    }

    fn dir(&self, kubelet_dir: &Path) -> PathBuf {
        kubelet_dir.join("pods").join(&self.uid).join("volumes/kubernetes.io~csi").join(&self.volume)
    }

    fn id(&self) -> String {
        format!("csi-{}-{}", self.uid, self.volume)
    }
}

impl Kubelet {
    /// Makes its directories.
    pub fn new(dir: &Path) -> Self {
        for name in ["pods", "plugins", "plugins_registry"] {
            fs::create_dir_all(dir.join(name)).expect("the test's directory is writable");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { dir: dir.to_owned(), runtime }
    }

    /// Its root directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it does when a socket appears in its registry.
    ///
    /// # Panics
    /// When the driver does not answer as the kubelet wants it.
    pub fn register(&self, socket: &Path) -> Registered {
        let info: PluginInfo =
            self.call(socket, "pluginregistration.Registration/GetInfo", &InfoRequest {}).expect("GetInfo");
        assert_eq!((info.r#type.as_str(), info.supported_versions), ("CSIPlugin", vec!["1.0.0".to_owned()]));
        let endpoint = PathBuf::from(info.endpoint);
        let plugin: GetPluginInfoResponse =
            self.call(&endpoint, "csi.v1.Identity/GetPluginInfo", &GetPluginInfoRequest {}).expect("GetPluginInfo");
        assert_eq!(plugin.name, info.name);
        let probe: ProbeResponse = self.call(&endpoint, "csi.v1.Identity/Probe", &ProbeRequest {}).expect("Probe");
        assert_eq!(probe.ready, Some(true));
        let node: NodeGetInfoResponse =
            self.call(&endpoint, "csi.v1.Node/NodeGetInfo", &NodeGetInfoRequest {}).expect("NodeGetInfo");
        let status = RegistrationStatus { plugin_registered: true, error: String::new() };
        let RegistrationStatusResponse {} = self
            .call(socket, "pluginregistration.Registration/NotifyRegistrationStatus", &status)
            .expect("NotifyRegistrationStatus");
        Registered { name: info.name, endpoint, node_id: node.node_id }
    }

    /// Makes the volume's directory and has the driver publish it.
    pub fn publish(&self, endpoint: &Path, volume: &Volume) -> Result<(), Failure> {
        let dir = volume.dir(&self.dir);
        fs::create_dir_all(&dir).expect("the test's directory is writable");
        let data = serde_json::json!({
            "attachmentID": "csi-0", "driverName": "csi.pillion.dev", "nodeName": "node-7", "specVolID": volume.volume,
            "volumeHandle": volume.id(), "volumeLifecycleMode": "Ephemeral",
        });
        fs::write(dir.join("vol_data.json"), data.to_string()).expect("the test's directory is writable");
        let reply = self.call(endpoint, "csi.v1.Node/NodePublishVolume", &volume.request(&self.dir));
        reply.map(|NodePublishVolumeResponse {}| ())
    }

    /// Has the driver unpublish it, and removes the directory if that leaves it empty.
    pub fn unpublish(&self, endpoint: &Path, volume: &Volume) -> Result<(), Failure> {
        let target_path = volume.mount(&self.dir).display().to_string();
        let request = NodeUnpublishVolumeRequest { volume_id: volume.id(), target_path };
        let NodeUnpublishVolumeResponse {} = self.call(endpoint, "csi.v1.Node/NodeUnpublishVolume", &request)?;
        let dir = volume.dir(&self.dir);
        // Absent when it never was published.
        let _absent_is_fine = fs::remove_file(dir.join("vol_data.json"));
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                panic!("the driver has left something in {}: {error}", dir.display())
            }
            _ => Ok(()),
        }
    }

    /// One unary call.
    pub fn call<Q: Message, A: Message + Default>(
        &self,
        socket: &Path,
        method: &str,
        request: &Q,
    ) -> Result<A, Failure> {
        let lost = |message: String| Failure { code: 14, message };
        self.runtime.block_on(async {
            match tokio::time::timeout(CALL_MAX, unary(socket, method, request)).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(error)) => Err(lost(error.to_string())),
                Err(late) => Err(lost(late.to_string())),
            }
        })
    }
}

/// The outer error is the transport's, the inner one the driver's.
async fn unary<Q: Message, A: Message + Default>(
    socket: &Path,
    method: &str,
    request: &Q,
) -> anyhow::Result<Result<A, Failure>> {
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(connect(socket).await?)).await?;
    let exchange = async move {
        let message = request.encode_to_vec();
        let mut framed = vec![0];
        framed.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
        framed.extend_from_slice(&message);
        let request = http::Request::post(format!("http://{}/{method}", authority(socket, method)))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(framed)))?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().unwrap_or(&head.headers).clone();
        let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let code: u32 = text("grpc-status").parse()?;
        let bytes = body.to_bytes();
        anyhow::Ok(match (code, bytes.get(5..)) {
            (0, Some(message)) => Ok(A::decode(message)?),
            _ => Err(Failure { code, message: unescape(&text("grpc-message")) }),
        })
    };
    tokio::select! {
        outcome = exchange => outcome,
        ended = connection => Err(anyhow::anyhow!("the driver hung up: {ended:?}")),
    }
}

/// Paths of tests are longer than sun_path.
/// What the real one's gRPC client says: the socket's path, escaped, in calls of the registration; else localhost.
fn authority(socket: &Path, method: &str) -> String {
    if method.starts_with("pluginregistration.") {
        socket.display().to_string().replace('/', "%2F")
    } else {
        "localhost".to_owned()
    }
}

async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (Some(parent), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = fs::File::open(parent)?;
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name)).await
}

/// `grpc-message` is percent-encoded.
fn unescape(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        let mut escaped = || -> Option<u8> {
            let (high, low) = (char::from(bytes.next()?).to_digit(16)?, char::from(bytes.next()?).to_digit(16)?);
            u8::try_from(high * 16 + low).ok()
        };
        plain.push(if byte == b'%' { escaped().unwrap_or(b'?') } else { byte });
    }
    String::from_utf8_lossy(&plain).into_owned()
}
