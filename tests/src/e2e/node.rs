//! The node, through a command that runs there as root: which processes are whose, and what they hold.
//!
//! Uses a shell, awk and /proc, so that it works on any distribution and with any container runtime.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use super::cluster::{command, run};

/// The node's shell.
#[derive(Debug, Clone)]
pub struct Node {
    prefix: Vec<String>,
    kubelet_dir: String,
}

/// A process in a container.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// As the node counts.
    pub pid: u32,
    /// Its arguments.
    pub command: String,
    /// /proc/PID/status.
    pub status: BTreeMap<String, String>,
}

/// What pods may leave behind on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// Sockets that the gateway's worker holds and that are not connections of its own namespace: donated and accepted ones.
    pub gateway_sockets: usize,
    /// The same of the driver.
    pub csi_sockets: usize,
    /// Volumes of our driver in the kubelet's directory.
    pub volumes: usize,
    /// Network namespaces that a process or a file holds.
    pub networks: usize,
}

impl Node {
    /// `prefix` runs a command as root on the node.
    pub fn new(prefix: &[String], kubelet_dir: &str) -> Self {
        Self { prefix: prefix.to_vec(), kubelet_dir: kubelet_dir.to_owned() }
    }

    /// Runs a shell script there, with arguments from `$1` on.
    pub fn shell(&self, script: &str, arguments: &[&str]) -> Result<String> {
        let mut words = vec!["sh", "-c", script, "sh"];
        words.extend(arguments);
        run(command(&self.prefix, &words), "")
    }

    /// The processes whose cgroup's path holds `part`: a container's id, or a pod's uid.
    pub fn processes(&self, part: &str) -> Result<Vec<Process>> {
        ensure!(!part.is_empty(), "no cgroup is named");
        // systemd writes a uid with underscores.
        let other = part.replace('-', "_");
        let script = "for dir in $(grep -lsF -e \"$1\" -e \"$2\" /proc/[0-9]*/cgroup); do dir=${dir%/cgroup}
            echo \"pid ${dir#/proc/}\"; echo \"cmd $(tr '\\0' ' ' <\"$dir/cmdline\")\"; cat \"$dir/status\"; done 2>/dev/null || true";
        Ok(processes(&self.shell(script, &[part, &other])?))
    }

    /// kill -9.
    pub fn kill(&self, pid: u32) -> Result<()> {
        self.shell("kill -9 \"$1\"", &[&pid.to_string()]).map(drop)
    }

    /// A page of the gateway that only loopback gets.
    pub fn gateway_page(&self, pid: u32, path: &str) -> Result<String> {
        let script = "nsenter -t \"$1\" -n curl -sf -m 5 \"http://127.0.0.1:4380$2\"";
        self.shell(script, &[&pid.to_string(), path])
    }

    /// What is there of pods.
    pub fn traces(&self, gateway: u32, csi: u32) -> Result<Traces> {
        let script = "
            for pid in \"$1\" \"$2\"; do
                ls -l /proc/$pid/fd | sed -n 's/.*socket:\\[\\([0-9]*\\)\\].*/\\1/p' | sort -u >/tmp/.e2e.$$.fds
                awk 'FNR > 1 { print $10 }' /proc/$pid/net/tcp /proc/$pid/net/tcp6 | sort -u >/tmp/.e2e.$$.tcp
                comm -23 /tmp/.e2e.$$.fds /tmp/.e2e.$$.tcp | wc -l
            done
            rm -f /tmp/.e2e.$$.fds /tmp/.e2e.$$.tcp
            grep -lsF '\"driverName\":\"csi.pillion.dev\"' \"$3\"/pods/*/volumes/kubernetes.io~csi/*/vol_data.json | wc -l
            { for link in /proc/[0-9]*/ns/net; do readlink \"$link\"; done; stat -c 'net:[%i]' /run/netns/* /var/run/netns/*; } 2>/dev/null | sort -u | wc -l";
        let text = self.shell(script, &[&gateway.to_string(), &csi.to_string(), &self.kubelet_dir])?;
        let numbers: Vec<usize> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [gateway_sockets, csi_sockets, volumes, networks] = numbers[..] else {
            anyhow::bail!("the node answered {text:?}");
        };
        Ok(Traces { gateway_sockets, csi_sockets, volumes, networks })
    }

    /// Whether the node may give CAP_SYS_RESOURCE to a container.
    pub fn has_sys_resource(&self) -> Result<bool> {
        let text = self.shell("sed -n 's/^CapBnd:\\s*//p' /proc/1/status", &[])?;
        let bounding = u64::from_str_radix(text.trim(), 16).with_context(|| format!("CapBnd is {text:?}"))?;
        Ok(bounding & SYS_RESOURCE != 0)
    }
}

/// CAP_SYS_RESOURCE is capability 24.
pub const SYS_RESOURCE: u64 = 1 << 24;

impl Process {
    /// A line of its status.
    pub fn field(&self, name: &str) -> &str {
        self.status.get(name).map(String::as_str).unwrap_or_default()
    }

    /// A set of capabilities.
    pub fn capabilities(&self, name: &str) -> Result<u64> {
        let text = self.field(name);
        u64::from_str_radix(text, 16).with_context(|| format!("{name} of {} is {text:?}", self.pid))
    }

    /// The processes of a list that are its children.
    pub fn is_child_of(&self, parents: &BTreeSet<u32>) -> bool {
        self.field("PPid").parse().is_ok_and(|parent| parents.contains(&parent))
    }
}

fn processes(text: &str) -> Vec<Process> {
    let mut all: Vec<Process> = Vec::new();
    for line in text.lines() {
        if let Some(pid) = line.strip_prefix("pid ").and_then(|pid| pid.parse().ok()) {
            all.push(Process { pid, ..Process::default() });
        } else if let Some(process) = all.last_mut() {
            match line.split_once(':') {
                _ if line.starts_with("cmd ") => process.command = line[4..].trim().to_owned(),
                Some((name, value)) => drop(process.status.insert(name.to_owned(), value.trim().to_owned())),
                None => {}
            }
        }
    }
    // One that ended while it was looked at has no status.
    all.retain(|process| !process.status.is_empty());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: two processes, of which one ended meanwhile.
    /// Guarantees: status and arguments are read; who is gone is left out.
    #[test]
    fn what_the_node_prints_becomes_processes() {
        let text =
            "pid 7\ncmd /pillion run --config x: \nName:\tpillion\nPPid:\t1\nCapEff:\t0000000001000000\npid 8\ncmd \n";
        let all = processes(text);
        assert_eq!((all.len(), all[0].pid, all[0].command.as_str()), (1, 7, "/pillion run --config x:"));
        assert_eq!(all[0].capabilities("CapEff").unwrap(), SYS_RESOURCE);
        assert!(all[0].is_child_of(&BTreeSet::from([1])) && all[0].capabilities("CapBnd").is_err());
    }
}
