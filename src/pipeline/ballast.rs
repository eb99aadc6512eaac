//! Ballast: a little space and a few inodes that are held while nobody needs them, in `state/ballast/`.
//!
//! Going back needs no space for trees and data, which are exchanged, but it has to write down what it does. On a disk that
//! a failed version filled to the last byte the ballast is thrown overboard first. A file system that compresses or copies
//! on write may not hold it as well as others do.

use std::path::{Path, PathBuf};

use super::draft::Live;
use super::preflight::Need;
use super::site::Site;
use crate::sys::dir::Dir;
use crate::sys::error::Result;
use crate::sys::fs;

/// The least that is held.
const LEAST: u64 = 1 << 20;
/// What is held for each entry of the live tree: a line in some witnesses and manifests.
const PER_ENTRY: u64 = 600;
/// Empty files, each of which holds an inode.
const FILES: u64 = 32;

/// The file that holds the space.
const SPACE: &str = "space";

fn dir(site: &Site) -> PathBuf {
    site.place.state().join("ballast")
}

/// How much is held while this version serves.
#[must_use]
pub fn size(live: Option<&Live>) -> u64 {
    let entries = live.map_or(0, |live| live.manifest.len() as u64);
    LEAST.saturating_add(entries.saturating_mul(PER_ENTRY))
}

/// What it takes to hold so many bytes, beside what is held already.
#[must_use]
pub fn missing(site: &Site, bytes: u64) -> Need {
    let held = fs::size_of(&dir(site).join(SPACE)).unwrap_or(0);
    Need { bytes: bytes.saturating_sub(held), inodes: if fs::exists(&dir(site)) { 0 } else { FILES + 2 } }
}

/// Holds so many bytes from now on, no more and no less.
///
/// # Errors
/// If there is no space.
pub fn hold(site: &Site, bytes: u64) -> Result<()> {
    let dir = dir(site);
    fs::ensure_dir(&dir, 0o700)?;
    let names = fs::names(&dir)?;
    for number in 0..FILES {
        let name = number.to_string();
        if !names.contains(&name) {
            fs::create_new(&dir.join(&name), 0o600)?;
        }
    }
    fs::allocate(&dir.join(SPACE), bytes, 0o600)
}

/// Gives everything back that is held, if less than twice that much is free.
///
/// # Errors
/// If it cannot be removed.
pub fn throw_if_low(site: &Site) -> Result<()> {
    let state = Dir::open(&site.place.state())?;
    let free = state.free_space()?;
    let held = fs::size_of(&dir(site).join(SPACE))?.max(LEAST);
    if free.at_most >= held.saturating_mul(2) && free.inodes >= 2 * FILES {
        return Ok(());
    }
    state.remove_tree(Path::new("ballast"))
}
