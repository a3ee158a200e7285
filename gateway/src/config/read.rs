//! From the tree to [`Config`]: `node` and `tenants` here, the rest in `policy` and `destination`.
//!
//! What is left out takes its default; what is wrong is reported and takes its default too, so that reading goes on.

mod destination;
mod policy;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::check;
use super::reader::{Reader, Section, Value};
use super::tree::Node as Tree;
use super::types::{Config, MinFree, Node, Policy, Ports, Tenant};
use crate::base::{DestinationName, TenantName};

/// Tenants of one file; more than any node has pods.
const TENANTS_MAX: usize = 1024;
const DESTINATIONS_MAX: usize = 256;
/// sockaddr_un has room for one more, which is NUL.
const SUN_PATH_MAX: usize = 107;

/// The places that checks across sections point at.
#[derive(Default)]
pub(super) struct Places<'r> {
    /// Every destination, the ones with mistakes in them included: a mention of such a one is no second mistake.
    pub(super) destinations: BTreeSet<DestinationName>,
    /// Every mention of a destination.
    pub(super) mentions: Vec<(DestinationName, Value<'r>)>,
    /// Every tenant.
    pub(super) tenants: BTreeMap<TenantName, Value<'r>>,
    /// `tenants:` itself.
    pub(super) tenants_section: Option<Value<'r>>,
    /// `node.custody_socket`.
    pub(super) custody_socket: Option<Value<'r>>,
}

/// Reads the whole file. The result means something only if the reader has no errors.
pub(super) fn config<'r>(reader: &'r Reader<'r>, tree: &'r Tree<'r>) -> Option<Config> {
    let mut places = Places::default();
    let root = Value::root(reader, tree);
    let config = root.section(|root| {
        let node = root.take("node").and_then(|value| value.section(|section| node(section, &mut places)));
        let node = node.unwrap_or_default();
        let defaults = Policy::default();
        let defaults = match root.take("defaults") {
            Some(value) => policy::read(&value, &defaults, &mut places),
            None => defaults,
        };
        let destinations =
            root.take("destinations").map(|value| destination::read_all(&value, &mut places)).unwrap_or_default();
        places.tenants_section = root.take("tenants");
        let tenants = places.tenants_section.clone();
        let tenants = tenants.map(|value| tenants_of(&value, &defaults, &mut places)).unwrap_or_default();
        refuse_foreign_sections(root);
        Config { node, defaults, destinations, tenants }
    })?;
    check::across(&config, &places);
    Some(config)
}

fn refuse_foreign_sections(root: &mut Section<'_>) {
    root.refuse_later(&["namespaces", "policies", "shutdown", "cluster", "telemetry"]);
    for key in ["receivers", "processors", "connectors", "service", "extensions"] {
        root.refuse(
            key,
            "belongs to a Collector's configuration",
            "Pillion has one pipeline for each tenant: see defaults and tenants; shims receive on 4317 and 4318",
        );
    }
    root.refuse("exporters", "belongs to a Collector's configuration", "backends are listed under destinations");
}

fn node<'r>(section: &mut Section<'r>, places: &mut Places<'r>) -> Node {
    let default = Node::default();
    let node = Node {
        data_dir: section.take("data_dir").and_then(|value| path(&value)).unwrap_or(default.data_dir),
        memory_limit: size(section, "memory_limit").unwrap_or(default.memory_limit),
        disk_limit: size(section, "disk_limit").unwrap_or(default.disk_limit),
        min_free: section.take("min_free").and_then(|value| min_free(&value)),
        dead_letters: size(section, "dead_letters").unwrap_or(default.dead_letters),
        workers: section.take("workers").and_then(|value| workers(&value)).unwrap_or(default.workers),
        admin: section.take("admin").and_then(|value| address(&value)).unwrap_or(default.admin),
        name: section.take("name").and_then(|value| value.filled_text()),
        custody_socket: {
            places.custody_socket = section.take("custody_socket");
            places.custody_socket.as_ref().and_then(socket)
        },
    };
    section.refuse_later(&["token"]);
    node
}

fn size(section: &mut Section<'_>, key: &'static str) -> Option<u64> {
    let value = section.take(key)?;
    value.at_least_one(value.size()?)
}

/// A share of the filesystem, or a size; 0 turns it off.
fn min_free(value: &Value<'_>) -> Option<MinFree> {
    let Some(percent) = value.text()?.strip_suffix('%').map(str::to_owned) else {
        return value.size().map(MinFree::Bytes);
    };
    value.parsed(|_| match percent.trim().parse::<u8>() {
        Ok(percent @ 0..=90) => Ok(MinFree::Percent(percent)),
        _ => Err("not a share from 0% to 90%"),
    })
}

fn workers(value: &Value<'_>) -> Option<usize> {
    if value.text()? == "auto" {
        return Some(workers_auto());
    }
    let workers = value.parsed(|text| match text.parse::<usize>() {
        Ok(workers @ 1..=64) => Ok(workers),
        _ => Err("neither auto nor a number from 1 to 64"),
    })?;
    Some(workers)
}

fn address(value: &Value<'_>) -> Option<SocketAddr> {
    value.parsed(|text| match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err("not an address with a port: write for example 127.0.0.1:4380"),
    })
}

fn path(value: &Value<'_>) -> Option<PathBuf> {
    let text = value.filled_text()?;
    if text.contains('\0') {
        value.fail("a path cannot contain a NUL", "");
        return None;
    }
    Some(PathBuf::from(text))
}

/// The path of a Unix socket to connect to.
fn socket(value: &Value<'_>) -> Option<PathBuf> {
    let path = path(value)?;
    let length = path.as_os_str().len();
    if length > SUN_PATH_MAX {
        value.fail(format!("{length} bytes are more than the {SUN_PATH_MAX} that the path of a socket may have"), "");
        return None;
    }
    Some(path)
}

/// min(4, cores).
fn workers_auto() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}

fn tenants_of<'r>(value: &Value<'r>, defaults: &Policy, places: &mut Places<'r>) -> BTreeMap<TenantName, Tenant> {
    let mut out = BTreeMap::new();
    let members = value.members();
    if members.len() > TENANTS_MAX {
        value.fail(format!("{} tenants are more than {TENANTS_MAX}", members.len()), "");
        return out;
    }
    for member in members {
        let name = match TenantName::parse(member.key) {
            Ok(name) => Some(name),
            Err(error) => {
                value.fail_at(member.key_at, member.key, error, "for example shop/cart");
                None
            }
        };
        let tenant = tenant(&member.value, defaults, places);
        if let (Some(name), Some(tenant)) = (name, tenant) {
            places.tenants.insert(name.clone(), member.value);
            out.insert(name, tenant);
        }
    }
    out
}

fn tenant<'r>(value: &Value<'r>, defaults: &Policy, places: &mut Places<'r>) -> Option<Tenant> {
    value.section(|section| {
        let socket_dir = match section.take("socket_dir") {
            Some(value) => path(&value),
            None => {
                section.fail("socket_dir is missing", "name the directory in which the shim finds its sockets");
                None
            }
        };
        let policy = match section.take("policy") {
            Some(value) => policy::read(&value, defaults, places),
            None => defaults.clone(),
        };
        let pod_uid = section.take("uid").and_then(|value| uid(&value));
        let ports = section.take("ports").and_then(|value| ports(&value)).unwrap_or_default();
        for key in ["limits", "ack", "queue", "sampling", "enrich", "destinations"] {
            section.refuse(key, "belongs under policy", "indent it below policy:");
        }
        socket_dir.map(|socket_dir| Tenant { socket_dir, pod_uid, ports, policy })
    })?
}

fn uid(value: &Value<'_>) -> Option<String> {
    value.parsed(|text| {
        let valid = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if valid { Ok(text.to_owned()) } else { Err("not a uid: up to 64 letters, digits and hyphens") }
    })
}

fn ports(value: &Value<'_>) -> Option<Ports> {
    let read = |value: Value<'_>| value.count(1..=u64::from(u16::MAX)).and_then(|port| u16::try_from(port).ok());
    let default = Ports::default();
    let ports = value.section(|section| Ports {
        grpc: section.take("grpc").and_then(read).unwrap_or(default.grpc),
        http: section.take("http").and_then(read).unwrap_or(default.http),
    })?;
    if ports.grpc == ports.http {
        value.fail(format!("grpc and http are both {}", ports.grpc), "choose two ports");
        return None;
    }
    Some(ports)
}

impl Default for Node {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./pillion-data"),
            memory_limit: 256 << 20,
            disk_limit: 10 << 30,
            min_free: None,
            dead_letters: 8 << 20,
            workers: workers_auto(),
            admin: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 4380),
            name: None,
            custody_socket: None,
        }
    }
}
