//! The command line.
//!
//! Owns the words of it. By hand: an argument parser would be larger than the shim.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use pillion_proto::control::Capabilities;

pub(crate) const HELP: &str = include_str!("help.txt");

/// What to do.
#[derive(Debug)]
pub(crate) enum Command {
    Run(Options),
    Wait(Options),
    Help,
    Version,
}

/// Options of `run` and `wait`.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) dir: PathBuf,
    pub(crate) grpc: u16,
    pub(crate) http: u16,
    /// What `--mode` allows.
    pub(crate) capabilities: Capabilities,
    /// Ends the shim when it has been without a gateway for so long. For a standalone gateway, whose shim nobody else ends.
    pub(crate) exit_after_alone: Option<Duration>,
}

/// Reads what follows the program's name.
pub(crate) fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let command = args.next();
    let wrap = match command.as_ref().and_then(|word| word.to_str()) {
        Some("run") => Command::Run,
        Some("wait") => Command::Wait,
        Some("--help" | "-h" | "help") => return Ok(Command::Help),
        Some("--version" | "-V") => return Ok(Command::Version),
        None | Some("") => return Err("say `run` or `wait`".to_owned()),
        Some(word) => return Err(["unknown command `", word, "`, there are `run` and `wait`"].concat()),
    };
    let mut options = Options {
        dir: PathBuf::new(),
        grpc: 4317,
        http: 4318,
        capabilities: Capabilities::DONATE | Capabilities::RELAY,
        exit_after_alone: None,
    };
    while let Some(name) = args.next() {
        let name = name.to_string_lossy().into_owned();
        if matches!(name.as_str(), "--help" | "-h") {
            return Ok(Command::Help);
        }
        let value = args.next().unwrap_or_default();
        let text = value.to_string_lossy();
        match name.as_str() {
            "--dir" => options.dir = PathBuf::from(value),
            "--grpc" => options.grpc = port(&name, &text)?,
            "--http" => options.http = port(&name, &text)?,
            "--mode" => options.capabilities = mode(&text)?,
            "--exit-after-alone" => {
                let seconds = text.parse().map_err(|_| "--exit-after-alone needs a number of seconds")?;
                options.exit_after_alone = Some(Duration::from_secs(seconds));
            }
            _ => return Err(["unknown option `", &name, "`"].concat()),
        }
    }
    if options.dir.as_os_str().is_empty() {
        return Err("--dir is missing".to_owned());
    }
    if options.grpc == options.http {
        return Err("--grpc and --http must differ; either port takes both protocols".to_owned());
    }
    Ok(wrap(options))
}

fn port(name: &str, text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err([name, " needs a port from 1 to 65535, not `", text, "`"].concat()),
    }
}

fn mode(text: &str) -> Result<Capabilities, String> {
    match text {
        "auto" => Ok(Capabilities::DONATE | Capabilities::RELAY),
        "donate" => Ok(Capabilities::DONATE),
        "relay" => Ok(Capabilities::RELAY),
        _ => Err(["--mode is auto, donate or relay, not `", text, "`"].concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    /// Scenario: the shortest command line and the longest.
    /// Guarantees: defaults are the ports that every SDK uses; every option arrives.
    #[test]
    fn options_have_defaults_and_arrive() {
        let Ok(Command::Run(options)) = parse_words("run --dir /d") else { panic!("not run") };
        assert_eq!((options.grpc, options.http, options.capabilities.0), (4317, 4318, 0b101));
        let line = "wait --grpc 1 --http 2 --mode relay --exit-after-alone 60 --dir /d";
        let Ok(Command::Wait(options)) = parse_words(line) else { panic!("not wait") };
        assert_eq!((options.grpc, options.http, options.capabilities), (1, 2, Capabilities::RELAY));
        assert_eq!(options.exit_after_alone, Some(Duration::from_secs(60)));
        assert_eq!(options.dir, PathBuf::from("/d"));
    }

    /// Scenario: each way to get the command line wrong.
    /// Guarantees: the message names the word that is wrong.
    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("", "run"),
            ("rn", "`rn`"),
            ("run", "--dir"),
            ("run --dir", "--dir"),
            ("run --dir /d --port 1", "`--port`"),
            ("run --dir /d --grpc 0", "--grpc"),
            ("run --dir /d --http 65536", "`65536`"),
            ("run --dir /d --grpc 4318", "differ"),
            ("run --dir /d --mode conn", "`conn`"),
            ("run --dir /d --exit-after-alone soon", "seconds"),
        ];
        for (line, word) in cases {
            let reason = parse_words(line).expect_err(line);
            assert!(reason.contains(word), "{line}: {reason}");
        }
    }
}
