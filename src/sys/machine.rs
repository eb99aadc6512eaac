//! What is known of the machine that we run on.

use std::path::Path;

use super::fs;

/// Whether systemd runs this machine (sd_booted(3)).
#[must_use]
pub fn runs_systemd() -> bool {
    fs::exists(Path::new("/run/systemd/system"))
}

/// Whether we are what the machine's boot runs: the recovery unit sets `MC_BOOT`. Nobody may wait for another unit then,
/// which may itself wait for us.
#[must_use]
pub fn at_boot() -> bool {
    std::env::var_os("MC_BOOT").is_some_and(|value| value == "1")
}

/// What the machine calls itself; `None` if that is nothing that could be told. Not escaped.
#[must_use]
pub fn host_name() -> Option<String> {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty())
}
