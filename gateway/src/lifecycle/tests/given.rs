//! Sites whose sockets somebody else has made, as the CSI driver does (docs/threats.md row 9).

use std::fs;
use std::path::Path;

use super::support::{Ground, Shim, Unusual, ask, connect_otlp, hear, listeners, served, within};
use crate::lifecycle::SiteSockets;
use crate::lifecycle::sockets::Sockets;

/// `ctl` and `otlp` in a directory, whose names stay when the descriptors are given away.
fn made_elsewhere(dir: &Path) -> (SiteSockets, [std::os::fd::OwnedFd; 2]) {
    let Sockets { ctl, otlp, .. } = Sockets::bind(dir).unwrap();
    let copies = [ctl.try_clone().unwrap(), otlp.try_clone().unwrap()];
    (SiteSockets::Given { ctl, otlp }, copies)
}

/// Scenario: a site with given sockets is served, and removed because its pod is gone; then the sockets are given again.
/// Guarantees: shims and relays are served on them; on removal the pod's listeners are closed at once and the session ends,
/// but names stay, since they are not the gateway's; whoever kept duplicates can have them served again, and what connected
/// meanwhile is served then.
#[tokio::test]
async fn given_sockets_are_served_and_their_names_left_alone() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let dir = ground.root.path().join("volume");
        let (given, [ctl, otlp]) = made_elsewhere(&dir);
        ground.site_with("shop/cart", ports, Unusual::default(), given).unwrap();
        let mut shim = Shim::serving(&dir, &own).await;
        assert_eq!(ask(own[0].local_addr().unwrap()).await, served("shop/cart"));
        assert_eq!(hear(&mut connect_otlp(&dir).await).await, "shop/cart unix\n");

        assert!(ground.remove("shop/cart").await);
        assert!(shim.receive().await.is_none(), "the session ends");
        assert_eq!(ground.slots(), 0, "nothing is held");
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["ctl", "otlp"]);

        let mut waiting = connect_otlp(&dir).await;
        let mut shim = Shim::connect(&dir);
        ground.site_with("shop/cart", ports, Unusual::default(), SiteSockets::Given { ctl, otlp }).unwrap();
        assert_eq!(hear(&mut waiting).await, "shop/cart unix\n");
        assert!(shim.hello().await.returned.is_empty());
    })
    .await;
}

/// Scenario: a second set of sockets for a tenant that has some.
/// Guarantees: an error that names the tenant; the site that is there goes on.
#[tokio::test]
async fn a_tenant_has_one_site() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        let (given, _copies) = made_elsewhere(&ground.root.path().join("volume"));
        let error = ground.site_with("shop/cart", ports, Unusual::default(), given).unwrap_err();
        assert!(error.to_string().contains("tenant shop/cart has its sockets already"), "{error}");
        let _shim = Shim::serving(&dir, &own).await;
        assert_eq!(ask(own[0].local_addr().unwrap()).await, served("shop/cart"));
    })
    .await;
}

/// Scenario: a shim goes without BYE while somebody announces the ends of pods; then nobody does any more.
/// Guarantees: its listeners are kept, for as long as it takes; afterwards until the grace is over, and then closed.
#[tokio::test]
async fn while_nobody_announces_ends_orphans_have_a_grace() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let dir = ground.root.path().join("volume");
        let (given, _copies) = made_elsewhere(&dir);
        ground.site_with("shop/cart", ports, Unusual::default(), given).unwrap();
        drop(Shim::serving(&dir, &own).await);
        ground.when("shop/cart", |site| !site.shim_connected && site.listeners.len() == 2).await;
        assert_eq!(ask(own[0].local_addr().unwrap()).await, served("shop/cart"));
        ground.lifecycle.set_announced(false);
        ground.when("shop/cart", |site| site.listeners.is_empty()).await;
    })
    .await;
}
