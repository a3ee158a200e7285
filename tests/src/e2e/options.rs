//! The command line of the suite.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// What it says for `--help`.
pub const USAGE: &str = "\
Runs Pillion's end-to-end scenarios on the cluster that kubectl reaches, and prints a line for each guarantee.

usage: pillion-e2e [OPTION]... list               the scenarios
       pillion-e2e [OPTION]... run [SCENARIO]...  install, run these (all if none is named), tell what was seen
       pillion-e2e [OPTION]... install            only install Pillion and the suite's backend

The cluster's nodes must have the images, or --load-image says how they get them. Commands are split at spaces.

--manifests DIR        what is installed                                     [default: deploy/yaml]
--image FILE           an archive for --load-image; may be repeated
--load-image CMD       loads archives into the node; they are its arguments
--via CMD              prefix of every kubectl, where that is not reached from here
--node CMD             prefix that runs a command as root on the (only) node
--restart-kubelet CMD  restarts the node's kubelet
--reboot CMD           restarts the node; returns when the kubelet is up again
--kubelet-dir DIR      the kubelet's directory on the node                   [default: /var/lib/kubelet]

A scenario that needs --node, --restart-kubelet or --reboot where it is not given is told as \"not run\", and fails the run
when it was named.";

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Print the usage.
    Help,
    /// Print the scenarios.
    List,
    /// Install, and nothing else.
    Install,
    /// Install, then run those named, or all.
    Run(Vec<String>),
}

/// How the cluster and its node are reached.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the manifests are.
    pub manifests: PathBuf,
    /// Image archives.
    pub images: Vec<PathBuf>,
    /// Loads them.
    pub load_image: Option<Vec<String>>,
    /// Before every kubectl.
    pub via: Vec<String>,
    /// Before a command for the node.
    pub node: Option<Vec<String>>,
    /// Restarts the kubelet.
    pub restart_kubelet: Option<Vec<String>>,
    /// Restarts the node.
    pub reboot: Option<Vec<String>>,
    /// On the node.
    pub kubelet_dir: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            manifests: "deploy/yaml".into(),
            images: Vec::new(),
            load_image: None,
            via: Vec::new(),
            node: None,
            restart_kubelet: None,
            reboot: None,
            kubelet_dir: "/var/lib/kubelet".to_owned(),
        }
    }
}

/// Reads the command line, without the program's name.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<(Options, Action)> {
    let mut arguments = arguments.into_iter();
    let mut options = Options::default();
    let action = loop {
        let Some(word) = arguments.next() else { bail!("nothing to do: list, run or install (--help)") };
        if word == "--help" || word == "-h" {
            break Action::Help;
        }
        if !word.starts_with('-') {
            break match word.as_str() {
                "list" => Action::List,
                "install" => Action::Install,
                "run" => Action::Run(arguments.by_ref().collect()),
                _ => bail!("no such command: {word} (list, run or install)"),
            };
        }
        let value = arguments.next().with_context(|| format!("{word} needs a value"))?;
        let command = || value.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        match word.as_str() {
            "--manifests" => options.manifests = value.into(),
            "--image" => options.images.push(value.into()),
            "--load-image" => options.load_image = Some(command()),
            "--via" => options.via = command(),
            "--node" => options.node = Some(command()),
            "--restart-kubelet" => options.restart_kubelet = Some(command()),
            "--reboot" => options.reboot = Some(command()),
            "--kubelet-dir" => options.kubelet_dir = value,
            _ => bail!("unknown option: {word} (--help)"),
        }
    };
    if let Some(rest) = arguments.next() {
        bail!("too many arguments: {rest} (--help)");
    }
    Ok((options, action))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<(Options, Action)> {
        parse(line.split('|').filter(|word| !word.is_empty()).map(str::to_owned))
    }

    /// Scenario: a whole command line, and mistakes.
    /// Guarantees: commands are split into words; every mistake is named.
    #[test]
    fn the_command_line_is_read_and_mistakes_are_named() {
        let (options, action) = words("--node|lab exec|--image|a.tar|--image|b.tar|run|sdk|job").unwrap();
        assert_eq!(options.node.unwrap(), ["lab", "exec"]);
        assert_eq!((options.images.len(), action), (2, Action::Run(vec!["sdk".into(), "job".into()])));
        for (line, part) in [
            ("", "nothing to do"),
            ("go", "no such command: go"),
            ("--node", "--node needs a value"),
            ("--nod|x|list", "unknown option: --nod"),
            ("list|all", "too many arguments: all"),
        ] {
            assert!(words(line).unwrap_err().to_string().contains(part), "{line}");
        }
    }
}
