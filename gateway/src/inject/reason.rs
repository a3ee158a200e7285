//! Why a pod gets no shim. The words are the same in the policy, in [`super::STATUS`], and on a terminal.

use std::fmt;

/// A reason. What it carries is for people on a terminal; the status of a pod has the words alone, since CEL writes them too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Nobody said `enabled`.
    NotAsked,
    /// Somebody said `disabled`.
    Disabled,
    /// The cluster's own namespace, or ours.
    ProtectedNamespace,
    /// A static pod's image in the API server: the kubelet started the pod long ago.
    MirrorPod,
    /// Injected before, or by hand.
    ShimPresent,
    /// The word that decides is neither `enabled` nor `disabled`.
    UnknownWord(String),
    /// It shares its loopback with the node.
    HostNetwork,
    /// The shim is a Linux program.
    Windows,
    /// A port annotation holds no port that an unprivileged process may bind.
    BadPort {
        /// The annotation.
        annotation: &'static str,
        /// What it holds.
        value: String,
    },
    /// Both protocols on one port.
    EqualPorts(u16),
    /// Another volume has our name.
    VolumeTaken,
    /// A collector will be injected, which listens on the same ports.
    CollectorAsked,
    /// A container listens there.
    PortTaken {
        /// Its name.
        container: String,
        /// The port.
        port: u16,
    },
}

impl Reason {
    /// One of each, for tables and tests.
    pub fn all() -> Vec<Self> {
        vec![
            Self::NotAsked,
            Self::Disabled,
            Self::ProtectedNamespace,
            Self::MirrorPod,
            Self::ShimPresent,
            Self::UnknownWord("true".to_owned()),
            Self::HostNetwork,
            Self::Windows,
            Self::BadPort { annotation: super::GRPC_PORT, value: "http".to_owned() },
            Self::EqualPorts(4317),
            Self::VolumeTaken,
            Self::CollectorAsked,
            Self::PortTaken { container: "app".to_owned(), port: 4317 },
        ]
    }

    /// The reason in one word, for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAsked => "not-asked",
            Self::Disabled => "disabled",
            Self::ProtectedNamespace => "protected-namespace",
            Self::MirrorPod => "mirror-pod",
            Self::ShimPresent => "shim-present",
            Self::UnknownWord(_) => "unknown-word",
            Self::HostNetwork => "host-network",
            Self::Windows => "windows",
            Self::BadPort { .. } => "bad-port",
            Self::EqualPorts(_) => "equal-ports",
            Self::VolumeTaken => "volume-taken",
            Self::CollectorAsked => "collector-asked",
            Self::PortTaken { .. } => "port-taken",
        }
    }

    /// What is in the way.
    pub fn words(&self) -> &'static str {
        match self {
            Self::NotAsked => "nobody asked for it",
            Self::Disabled => "pillion.dev/inject is disabled, which is final",
            Self::ProtectedNamespace => "pods of this namespace are left alone",
            Self::MirrorPod => "a static pod belongs to its kubelet",
            Self::ShimPresent => "the shim is there already",
            Self::UnknownWord(_) => "pillion.dev/inject is neither enabled nor disabled",
            Self::HostNetwork => "the pod uses the node's network",
            Self::Windows => "the shim is a Linux program",
            Self::BadPort { .. } => "a port annotation is no number from 1024 to 65535",
            Self::EqualPorts(_) => "both port annotations say the same port",
            Self::VolumeTaken => "the pod has a volume called pillion",
            Self::CollectorAsked => "sidecar.opentelemetry.io/inject asks for a collector on the same ports",
            Self::PortTaken { .. } => "a container declares a port that the shim would take",
        }
    }

    /// What to do about it; empty where nothing is wrong.
    pub fn next_step(&self) -> &'static str {
        match self {
            Self::NotAsked | Self::Disabled | Self::ProtectedNamespace | Self::MirrorPod | Self::ShimPresent => "",
            Self::UnknownWord(_) => "write enabled or disabled",
            Self::HostNetwork => "send to a collector outside of the pod, or take out hostNetwork",
            Self::Windows => "send to a collector outside of the pod",
            Self::BadPort { .. } => "write a number in quotes, for example \"14317\", or take out the annotation",
            Self::EqualPorts(_) => "choose two ports with pillion.dev/grpc-port and pillion.dev/http-port",
            Self::VolumeTaken => "give that volume another name",
            Self::CollectorAsked => {
                "take out that annotation, or choose other ports with pillion.dev/grpc-port and pillion.dev/http-port"
            }
            Self::PortTaken { .. } => {
                "if it does not serve OTLP, choose other ports with pillion.dev/grpc-port and pillion.dev/http-port"
            }
        }
    }

    /// Whether the pod asked, so that it is told why not.
    pub fn is_noted(&self) -> bool {
        !self.next_step().is_empty()
    }

    /// The value of [`super::STATUS`].
    pub fn status(&self) -> String {
        format!("skipped: {}: {}", self.code(), self.words())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())?;
        match self {
            Self::UnknownWord(word) => write!(f, " ({word:?})"),
            Self::BadPort { annotation, value } => write!(f, " ({annotation}: {value:?})"),
            Self::EqualPorts(port) => write!(f, " ({port})"),
            Self::PortTaken { container, port } => write!(f, " ({container}: {port})"),
            _ => Ok(()),
        }
    }
}
