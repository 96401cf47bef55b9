//! A device directory of one's own: tests run side by side and never meet on a device.

use std::path::Path;

use tempfile::TempDir;
use tokio_smc::{Config, UpgradePolicy};

/// One private loopback-ism device; its directory goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Lab {
    dir: TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("smc-test-").tempdir().expect("a temp dir") }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Pure defaults on this device: variables of the environment must not steer a test.
    pub(crate) fn config(&self, policy: UpgradePolicy) -> Config {
        Config::new().device_dir(self.dir()).upgrade_policy(policy)
    }
}
