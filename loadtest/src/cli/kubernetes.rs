//! The comparison on a cluster, from the command line to the report.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use super::arguments::{KubernetesArguments, Load};
use super::{Asked, arms, finish, make, tell};
use crate::assert::Assertions;
use crate::compare::Missing;
use crate::kubernetes::kubectl::Kubectl;
use crate::kubernetes::{self, Arm, Site, Way};
use crate::scenario::Scenario;

pub(super) fn compare(name: String, rounds: usize, arguments: &KubernetesArguments, load: &Load) -> Result<ExitCode> {
    let assertions = load.places.assertions.as_deref().map(Assertions::load).transpose()?;
    let scenario = load.apply(Scenario::load(&name)?)?;
    kubernetes::check(&scenario)?;
    let site = site(arguments)?;
    let (arms, missing) = find(&load.arms(&Way::ALL.map(Way::name)), &site)?;
    ensure!(!arms.is_empty(), "none of the arms can be run: {missing:?}");
    let asked = Asked { name: &name, scenario, rounds, missing, out: load.places.out.as_deref() };
    let comparison =
        make(asked, load, |request| kubernetes::run(request, &site, &arms, &mut |line| tell(format_args!("{line}"))))?;
    finish(comparison, load, assertions.as_ref())
}

fn site(arguments: &KubernetesArguments) -> Result<Site> {
    let sink = arguments.sink.context("--sink: an address of this machine that pods reach")?;
    ensure!(!sink.ip().is_unspecified() && !sink.ip().is_loopback(), "--sink: pods cannot reach {}", sink.ip());
    let port =
        sink.port().checked_add(1).filter(|port| *port > 1).context("--sink: a port with another one after it")?;
    Ok(Site {
        kubectl: Kubectl::new(&arguments.kubectl)?,
        sink,
        conductor: SocketAddr::new(sink.ip(), port),
        application_image: arguments.loadtest_image.clone(),
        otelcol_image: arguments.otelcol_image.clone(),
        pillion_namespace: arguments.pillion_namespace.clone(),
        run: fastrand::u64(..),
    })
}

/// The arms of those names, and why others are not there.
fn find(names: &[String], site: &Site) -> Result<(Vec<Arm>, Vec<Missing>)> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        ensure!(
            arms::NAMES.contains(&name.as_str()),
            "no arm is called {name:?}: there are {}",
            arms::NAMES.join(", ")
        );
        let way = Way::ALL.into_iter().find(|way| way.name() == name).context("there is no such arm on a cluster");
        match way.and_then(|way| way.find(site)) {
            Ok(arm) => found.push(arm),
            Err(why) => missing.push(Missing { arm: name.clone(), why: format!("{why:#}") }),
        }
    }
    Ok((found, missing))
}
