//! `pillion queue` on real data directories.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::process::Signal;

use crate::process::{Process, READY, free_ports, run};

/// A gateway with one tenant and the embedded sink, in `data`.
fn start(dir: &Path) -> Process {
    let [admin] = free_ports();
    let text = format!(
        "node: {{data_dir: data, admin: '127.0.0.1:{admin}'}}
destinations: {{sink: {{protocol: sink, allow: ['*']}}}}
defaults: {{destinations: [sink]}}
tenants: {{shop/cart: {{socket_dir: cart}}}}
"
    );
    fs::write(dir.join("pillion.yaml"), text).expect("writable");
    let mut gateway = Process::start(dir, &["run", "--config", "pillion.yaml"]);
    gateway.wait_for(READY);
    gateway
}

/// Scenario: a directory that was open to everybody is used, killed, checked, damaged and checked again, while and after a
/// gateway uses it.
/// Guarantees: it is closed to others, its admin socket is the owner's and goes with an orderly end; verify refuses a directory
/// in use with status 4, says that a good one is intact with status 0 and names damage with status 10, in words and as JSON.
#[test]
fn a_data_directory_is_checked() {
    let dir = tempfile::tempdir().expect("writable");
    let data = dir.path().join("data");
    fs::create_dir(&data).expect("writable");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).expect("its owner may");
    let mut gateway = start(dir.path());
    assert_eq!(fs::metadata(&data).expect("it is there").permissions().mode() & 0o7777, 0o750);
    let socket = data.join("admin.sock");
    let kind = fs::metadata(&socket).expect("the gateway listens");
    assert!(kind.file_type().is_socket() && kind.permissions().mode() & 0o777 == 0o600);

    let (status, _, stderr) = run(dir.path(), &["queue", "verify", "data"]);
    assert_eq!(status, Some(4));
    assert!(stderr.contains("is in use by process"), "{stderr}");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.exit_code(), Some(0));
    assert!(!socket.exists());

    let (status, stdout, _) = run(dir.path(), &["queue", "verify", "data"]);
    assert!(status == Some(0) && stdout.contains("intact: every checksum is right"), "{stdout}");
    let mut segments = fs::read_dir(data.join("log")).expect("it lists").map(|entry| entry.expect("an entry").path());
    let segment = segments.find(|path| path.extension().is_some_and(|end| end == "seg")).expect("a segment");
    let mut bytes = fs::read(&segment).expect("it reads");
    bytes[120] ^= 1;
    fs::write(&segment, bytes).expect("it writes");
    let (status, stdout, _) = run(dir.path(), &["queue", "verify", "-o", "json", "data"]);
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert!(status == Some(10) && report["intact"] == false && report["damages"] == 1, "{stdout}");
    let (status, _, stderr) = run(dir.path(), &["queue", "verify", "nowhere"]);
    assert!(status == Some(5) && stderr.contains("nowhere"), "{stderr}");
}
