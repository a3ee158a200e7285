//! The lock of the data directory. On a single machine somebody else's lock is a mistake; in a cluster it is the gateway of
//! before, which is about to go: this one is its standby, and the kernel wakes it when the lock is free.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::stage::Stage;
use super::{Exit, Refused};
use crate::config::Config;
use crate::queue::{DirectoryLock, OpenError};

/// Between two looks at a data directory that the CSI driver has not prepared yet.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Takes the lock, or waits for it.
pub(super) async fn take(config: &Config, stage: &Arc<Stage>) -> Result<DirectoryLock, Refused> {
    let dir = &config.node.data_dir;
    if config.node.custody_socket.is_none() {
        return DirectoryLock::take(dir).map_err(Refused::of_queue);
    }
    let mut said = false;
    loop {
        match wait(dir.clone(), stage.clone()).await {
            Err(error) if is_not_prepared(&error) => {
                let words = format!("waiting for the CSI driver to prepare the data directory: {error}");
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!("{words}");
                }
                stage.not_yet(&words);
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            outcome => return outcome.map_err(Refused::of_queue),
        }
    }
}

async fn wait(dir: PathBuf, stage: Arc<Stage>) -> Result<DirectoryLock, OpenError> {
    let waiting = tokio::task::spawn_blocking(move || {
        let lock = DirectoryLock::wait(&dir, || occupied(&dir, &stage))?;
        stage.not_yet("starting: reading the queue");
        Ok(lock)
    });
    waiting.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn occupied(dir: &Path, stage: &Stage) {
    let words =
        format!("standby: another gateway has the data directory {}; this one takes over when it ends", dir.display());
    stage.standby(&words);
    tracing::info!("{words}");
}

fn is_not_prepared(error: &OpenError) -> bool {
    match error {
        OpenError::Io { source, .. } => matches!(source.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied),
        // As the kubelet makes it for a hostPath: the driver gives it the gateway's group and closes it to others.
        OpenError::Exposed { .. } => true,
        OpenError::Locked { .. } | OpenError::NewerFormat { .. } => false,
    }
}

impl Refused {
    pub(super) fn of_queue(error: OpenError) -> Self {
        Self { exit: Exit::of_queue(&error), words: error.to_string() }
    }
}
