//! Nodes with Salt, which `tests/run` installs by `setup --salt`.

use std::path::{Path, PathBuf};

use super::server::Server;
use super::{Finished, World};

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

/// Puts the same environment into a machine, where `setup --salt` would make it.
pub fn bring(server: &Server) {
    let from = environment();
    let version = from.file_name().unwrap().to_str().unwrap().to_string();
    let place = server.machine().root().join("var/lib/mc_project");
    let mut copy = std::process::Command::new("cp");
    copy.args(["-a", "--reflink=auto"]).arg(&from).arg(&place);
    Finished::of(copy).ok();
    let call = format!("/var/lib/mc_project/{version}/bin/salt-call");
    let python = format!("/var/lib/mc_project/{version}/bin/python3");
    server
        .machine()
        .run(&format!("ln -s {version} /var/lib/mc_project/salt && sed -i '1s:.*:#!{python}:' {call}"))
        .ok();
}
