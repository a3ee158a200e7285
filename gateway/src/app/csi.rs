//! `pillion csi`: starts the driver. It has no supervisor: the kubelet starts it again, and its sockets outlive it.

use std::process::ExitCode;

use super::cli::CsiArgs;
use super::exit::Exit;
use crate::csi::{self, Config};
use crate::{lifecycle, telemetry};

/// Serves until it is told to stop.
pub fn run(args: CsiArgs) -> ExitCode {
    telemetry::init();
    let files_max = lifecycle::raise_descriptor_limit();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), files_max, "the CSI driver starts");
    let CsiArgs { node_name, kubelet_dir, custody, data_dir, gateway_id } = args;
    match csi::run(&Config { node_name, kubelet_dir, custody, data_dir, gateway_id }) {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            tracing::error!(%error, "the CSI driver cannot start");
            Exit::Failure.into()
        }
    }
}
