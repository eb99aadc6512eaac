//! Nodes with Salt, which `tests/run` installs by `setup --salt`.

use std::path::{Path, PathBuf};

use super::World;

/// The environment of Salt.
pub fn environment() -> PathBuf {
    let salt = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/salt/var/lib/mc_project/salt");
    assert!(salt.join("bin/salt-call").exists(), "{} is missing: tests/run makes it", salt.display());
    salt.canonicalize().unwrap()
}

/// A node in a directory with the project `shop`, deployed by Salt.
pub fn world() -> World {
    let world = World::with_config(&format!("salt: {}\n", environment().join("bin/salt-call").display()));
    world.mc(&["init", "shop"]).ok();
    world
}
