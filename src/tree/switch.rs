//! The switch: one exchange of `run` and `deploy/spare`, so that a reader sees the old tree or the new one.

use std::path::Path;

use crate::project::outcome::SwitchKind;
use crate::project::place::Place;
use crate::sys::dir::Dir;
use crate::sys::error::{Error, Result};
use crate::sys::fault;
use crate::sys::mount;

/// The two physical trees by the inodes of their directories: which name holds which is decided by looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inodes {
    /// The directory at `run`.
    pub run: u64,
    /// The directory at `deploy/spare`.
    pub spare: u64,
}

/// Which directory stands at which name now.
///
/// # Errors
/// If one of them is missing.
pub fn inodes(place: &Place) -> Result<Inodes> {
    Ok(Inodes {
        run: Dir::open_real(&place.run())?.stat_self()?.ino,
        spare: Dir::open_real(&place.spare())?.stat_self()?.ino,
    })
}

/// How `run` must be switched: in place when it is a mount point or lies on another file system than the spare.
///
/// # Errors
/// If one of the trees cannot be examined.
pub fn kind(place: &Place) -> Result<SwitchKind> {
    let (run, spare) = (Dir::open_real(&place.run())?, Dir::open_real(&place.spare())?);
    let apart = run.stat_self()?.dev != spare.stat_self()?.dev;
    Ok(if apart || mount::is_mount_point(&place.run())? { SwitchKind::InPlace } else { SwitchKind::Exchange })
}

/// Exchanges `run` and the spare and makes that durable.
///
/// # Errors
/// If the exchange is impossible; nothing changed then. If only the sync failed, the exchange may be lost by a power cut,
/// and the caller must treat the switch as failed.
pub fn exchange(place: &Place) -> Result<()> {
    let (dir, deploy) = (Dir::open(place.dir())?, Dir::open(&place.deploy())?);
    dir.exchange(Path::new("run"), &deploy, Path::new("spare"))?;
    fault::point("deploy.exchanged")?;
    dir.sync()?;
    deploy.sync()
}

/// Makes sure that the names hold these directories, exchanging them if they are the other way round.
///
/// # Errors
/// If other directories stand there: somebody replaced a tree by hand.
pub fn ensure(place: &Place, wanted: Inodes) -> Result<bool> {
    let now = inodes(place)?;
    if now == wanted {
        return Ok(false);
    }
    if (now.run, now.spare) != (wanted.spare, wanted.run) {
        return Err(Error::failed(format!("{} was replaced by hand during a deployment", place.run().display())).hint(
            format!(
                "look at {} and {}; the right one holds the live version",
                place.run().display(),
                place.spare().display()
            ),
        ));
    }
    exchange(place)?;
    Ok(true)
}
