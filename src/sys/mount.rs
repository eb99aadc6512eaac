//! temp
use super::error::{Context, Result};
use std::path::Path;
/// Whether.
///
/// # Errors
/// x
pub fn is_mount_point(path: &Path) -> Result<bool> {
    let st = rustix::fs::statx(
        rustix::fs::CWD,
        path,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        rustix::fs::StatxFlags::BASIC_STATS,
    )
    .context(|| format!("cannot examine {}", path.display()))?;
    Ok(st.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}
