//! What a back end is told to keep running: one instance of a service with everything decided.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::project::ids::{DeploymentId, ObjectId};
use crate::project::recipe::ServiceName;
use crate::project::recipe::service::{Kind, Restart, ServiceLimits, StopSignal, Unchanged};
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Result};
use crate::sys::step_exec::StepOrder;

/// One of the equal processes of a service: `web@1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Instance {
    /// The service.
    pub service: ServiceName,
    /// Its number, from 1.
    pub number: u32,
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.service, self.number)
    }
}

/// Which version of the project a service runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The deployment that started it.
    pub deployment: Option<DeploymentId>,
    /// The commit.
    pub commit: Option<ObjectId>,
}

/// One instance of a service, ready to be run. It holds secrets (its environment): it is written only to files that
/// nobody but their owner may read.
#[derive(Clone, Serialize, Deserialize)]
pub struct Definition {
    /// Which instance of which service.
    pub instance: Instance,
    /// When it counts as up.
    pub kind: Kind,
    /// When it is started again.
    pub restart: Restart,
    /// What asks it to end.
    pub stop_signal: StopSignal,
    /// How long it may take to end.
    pub stop_timeout: Duration,
    /// How long it may take until it is up.
    pub start_timeout: Duration,
    /// What it may use.
    pub limits: ServiceLimits,
    /// Whether it may be left running by a deployment that does not change it.
    pub unchanged: Unchanged,
    /// Program, environment, directory, identity and box.
    pub order: StepOrder,
    /// The version that it belongs to.
    pub running: Running,
    /// Values that no log may hold.
    pub secrets: Vec<String>,
}

/// The most that is read of a secret, in bytes.
const LARGEST_SECRET: u64 = 1 << 20;

/// A secret that is given as a file; bounded, as everything that is read.
fn secret_in(dir: &Dir, name: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    dir.open_file(name).ok()?.take(LARGEST_SECRET).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

impl fmt::Debug for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &mut f.debug_struct("Definition");
        shown.field("instance", &self.instance).field("order", &self.order).field("running", &self.running);
        shown.finish_non_exhaustive()
    }
}

impl Definition {
    /// The values that no log may hold: those of the pillar, and those that it is given in memory.
    #[must_use]
    pub fn all_secrets(&self) -> Vec<String> {
        let dir = self.order.env.iter().find(|(name, _)| name == "MC_SECRETS_DIR").map(|(_, dir)| Path::new(dir));
        let given = dir.and_then(|dir| Dir::open_real(dir).ok()).and_then(|dir| {
            let names = dir.names().ok()?;
            Some(names.into_iter().filter_map(|name| secret_in(&dir, Path::new(&name))).collect::<Vec<_>>())
        });
        self.secrets.iter().cloned().chain(given.unwrap_or_default()).collect()
    }

    /// A digest of everything that decides how the service runs, without what changes with every deployment: two equal
    /// digests are the same service.
    ///
    /// # Errors
    /// Never for a good definition.
    pub fn digest(&self) -> Result<String> {
        const OF_THE_DEPLOYMENT: [&str; 3] = ["MC_DEPLOYMENT", "MC_COMMIT", "STATIC_URL"];
        let mut same = self.clone();
        same.running = Running::default();
        same.secrets.clear();
        same.order.marker = None;
        same.order.env.retain(|(name, _)| !OF_THE_DEPLOYMENT.contains(&name.as_str()));
        let text = serde_json::to_vec(&same).context(|| format!("cannot describe the service {}", self.instance))?;
        Ok(blake3::hash(&text).to_hex().to_string())
    }
}
