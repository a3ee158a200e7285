//! Who may ask for what. Pure.
//!
//! The admin server has no passwords: it trusts whoever reaches a loopback address. A web page that the same person has
//! open could reach it too, by pointing a name of its own at 127.0.0.1 (DNS rebinding); but then the browser sends that
//! name in the Host header. So on loopback only names that cannot be somebody else's are accepted. On other addresses, where
//! nothing of pods is shown, any name will do: monitoring comes by the names of Services and through proxies.

use std::net::IpAddr;

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// HTTP/1.1 without a Host header: 400.
    NoHost,
    /// A name that may be anybody's: 421.
    ForeignHost,
    /// Shown on loopback only: 403.
    NotLocal,
}

/// `local` is the address that the client connected to; `host` is what it believes that address is called.
pub(super) fn check_host(host: Option<&str>, local: IpAddr) -> Result<(), Refusal> {
    let host = host_name(host.ok_or(Refusal::NoHost)?).ok_or(Refusal::ForeignHost)?;
    let local = local.to_canonical();
    if !local.is_loopback() {
        return Ok(());
    }
    let fits = match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => is_localhost(host),
    };
    if fits { Ok(()) } else { Err(Refusal::ForeignHost) }
}

/// For what shows the data of pods.
pub(super) fn check_local(local: IpAddr, peer: IpAddr) -> Result<(), Refusal> {
    let both = local.to_canonical().is_loopback() && peer.to_canonical().is_loopback();
    if both { Ok(()) } else { Err(Refusal::NotLocal) }
}

/// `localhost` and everything below it resolve to loopback by RFC 6761, whatever DNS says.
fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// The name or address of `host[:port]`. Any port: a forwarded one differs from ours.
fn host_name(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (name, port) = rest.split_once(']')?;
            (name, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let good_port = port.is_none_or(|port| port.parse::<u16>().is_ok());
    (good_port && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Scenario: a browser was made to believe that a name of the attacker is 127.0.0.1.
    /// Guarantees: on loopback only its names and addresses are accepted; elsewhere, for metrics, any name that is one.
    #[test]
    fn a_name_that_may_be_anybodys_is_refused() {
        let loopback = ip("127.0.0.1");
        for good in [
            "localhost",
            "LOCALHOST:4380",
            "pillion.localhost:1",
            "localhost.",
            "127.0.0.1:4380",
            "[::1]:80",
            "127.9.9.9",
        ] {
            assert_eq!(check_host(Some(good), loopback), Ok(()), "{good}");
        }
        for bad in [
            "evil.example",
            "evil.example:4380",
            "localhost.evil.example",
            "notlocalhost",
            "10.0.0.1",
            "",
            ":4380",
            "127.0.0.1:x",
            "127.0.0.1:99999",
            "[::1",
            "[::1]x",
            "::1",
            "127.0.0.1@evil.example",
            "0x7f000001",
        ] {
            assert_eq!(check_host(Some(bad), loopback), Err(Refusal::ForeignHost), "{bad}");
        }
        assert_eq!(check_host(None, loopback), Err(Refusal::NoHost));
        assert_eq!(check_host(Some("evil.example"), ip("::ffff:127.0.0.1")), Err(Refusal::ForeignHost), "mapped");
        for good in ["10.1.2.3:4380", "pillion-gateway.pillion-system:4380", "192.168.77.1"] {
            assert_eq!(check_host(Some(good), ip("10.1.2.3")), Ok(()), "{good}");
        }
        assert_eq!(check_host(Some("a:b"), ip("10.1.2.3")), Err(Refusal::ForeignHost));
    }

    /// Scenario: the admin address is the pod's.
    /// Guarantees: what pods sent is shown to nobody beyond the machine.
    #[test]
    fn data_is_shown_on_loopback_only() {
        assert_eq!(check_local(ip("127.0.0.1"), ip("127.0.0.1")), Ok(()));
        assert_eq!(check_local(ip("::1"), ip("::1")), Ok(()));
        assert_eq!(check_local(ip("::ffff:127.0.0.1"), ip("::ffff:127.0.0.1")), Ok(()));
        assert_eq!(check_local(ip("10.1.2.3"), ip("10.9.9.9")), Err(Refusal::NotLocal));
        assert_eq!(check_local(ip("10.1.2.3"), ip("10.1.2.3")), Err(Refusal::NotLocal));
    }
}
