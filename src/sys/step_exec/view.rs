//! What a step sees of the machine: directories at other places, a memory file system of its own, its own processes
//! alone, no network. All of it in namespaces that end with the step and its children.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::{escaped, open_dir};
use crate::sys::error::{Context, Error, Result};

/// A directory to be seen at another place by the step alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// The directory that is shown.
    #[serde(with = "escaped")]
    pub source: PathBuf,
    /// Where the step sees it.
    #[serde(with = "escaped")]
    pub at: PathBuf,
    /// Whether nothing can be written there.
    #[serde(default)]
    pub read_only: bool,
}

/// Which processes a step sees in `/proc`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Processes {
    /// All that the machine shows.
    #[default]
    All,
    /// Those of its own user, where the kernel can hide the others for one view alone (Linux 5.8); otherwise all.
    Own,
}

/// Whether a step reaches the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// As we do.
    #[default]
    On,
    /// Only a loopback device of its own. Sockets that are files are no network: permissions decide about them.
    Off,
}

/// What a step sees of the machine; by default what we see.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The directories that it sees at other places; they are mounted in this order.
    pub binds: Vec<Bind>,
    /// The size of a `/dev/shm` of its own, in bytes; the machine's if unset.
    pub shm: Option<u64>,
    /// The processes that it sees.
    pub processes: Processes,
    /// Whether it reaches the network.
    pub network: Network,
}

impl View {
    fn changes_mounts(&self) -> bool {
        !self.binds.is_empty() || self.shm.is_some() || self.processes == Processes::Own
    }
}

/// Gives this process and its children the view.
pub fn take(view: &View) -> Result<()> {
    if !view.changes_mounts() && view.network == Network::On {
        return Ok(());
    }
    open_namespaces(view)?;
    // All are opened before the first is mounted: one may hide where another one is.
    let opened = view.binds.iter().map(|bind| Ok((bind, open_dir(&bind.source)?, open_dir(&bind.at)?)));
    for (bind, source, at) in opened.collect::<Result<Vec<_>>>()? {
        show_at(bind, &source, &at)?;
    }
    if let Some(size) = view.shm {
        own_shared_memory(size)?;
    }
    if view.processes == Processes::Own {
        // What cannot be hidden is not: `probe_hidden_processes` tells it to those who ask.
        let _ = hide_processes();
    }
    Ok(())
}

/// Opens the namespaces: directly as root, within a user namespace (same ids) otherwise.
///
/// Within a user namespace other users' files look as if they belonged to nobody and nothing can be given to another
/// group; a build that needs neither does not notice.
fn open_namespaces(view: &View) -> Result<()> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    if !uid.is_root() {
        nix::sched::unshare(CloneFlags::CLONE_NEWUSER).context(|| "cannot make a user namespace".into())?;
        // The kernel takes a group map from an unprivileged process only after setgroups(2) was denied.
        for (file, text) in [
            ("setgroups", "deny".to_string()),
            ("uid_map", format!("{uid} {uid} 1")),
            ("gid_map", format!("{gid} {gid} 1")),
        ] {
            std::fs::write(Path::new("/proc/self").join(file), text)
                .context(|| format!("cannot write the {file} of a user namespace"))?;
        }
    }
    if view.network == Network::Off {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET)
            .context(|| "cannot keep the step from the network: cannot make a network namespace".into())?;
        raise_loopback().context(|| "cannot bring up the loopback device of a network namespace".into())?;
    }
    if view.changes_mounts() {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).context(|| "cannot make a mount namespace".into())?;
        // Nothing of ours goes out; what the machine unmounts is unmounted here too, or a daemon would keep it for ever.
        rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .context(|| "cannot keep the mounts to ourselves".into())?;
    }
    Ok(())
}

/// Shows one directory at the place of another.
fn show_at(bind: &Bind, source: &OwnedFd, at: &OwnedFd) -> Result<()> {
    let shown = |path: &Path| crate::sys::escape::visible_bounded(path.as_os_str().as_bytes(), 4096);
    let doing = || format!("cannot show {} at {}", shown(&bind.source), shown(&bind.at));
    mount_by_descriptor(source, at).context(doing)?;
    let there = open_dir(&bind.at)?;
    let seen = rustix::fs::fstat(&there).context(doing)?;
    let wanted = rustix::fs::fstat(source).context(doing)?;
    if (seen.st_dev, seen.st_ino) != (wanted.st_dev, wanted.st_ino) {
        return Err(Error::failed(doing()).because(Error::failed("something else is seen there")));
    }
    if bind.read_only {
        restrict(&there, true).context(|| format!("{}, so that nothing is written there", doing()))?;
    } else if Uid::effective().is_root() {
        // A second wall: the step can take no privileges anyway, and nothing puts a device there.
        let _ = restrict(&there, false);
    }
    Ok(())
}

/// No set-user-id programs and no devices on the mount that this directory is the root of, perhaps nothing written; its other
/// flags stay.
fn restrict(mounted: &OwnedFd, read_only: bool) -> rustix::io::Result<()> {
    use rustix::fs::StatVfsMountFlags as Has;
    let has = rustix::fs::fstatvfs(mounted)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    let kept = [
        (Has::RDONLY, MountFlags::RDONLY),
        (Has::NOEXEC, MountFlags::NOEXEC),
        (Has::NOATIME, MountFlags::NOATIME),
        (Has::NODIRATIME, MountFlags::NODIRATIME),
        (Has::RELATIME, MountFlags::RELATIME),
    ];
    for (_, flag) in kept.into_iter().filter(|(set, _)| has.contains(*set)) {
        flags |= flag;
    }
    rustix::mount::mount_remount(magic(mounted), flags, c"")
}

fn mount_by_descriptor(source: &OwnedFd, at: &OwnedFd) -> rustix::io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let moved = rustix::mount::open_tree(source, "", flags).and_then(|tree| {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", at, "", flags)
    });
    // Old kernels and some system call filters know only mount(2); the magic links name the very directories we hold.
    moved.or_else(|_| rustix::mount::mount_bind_recursive(magic(source), magic(at)))
}

fn magic(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A `/dev/shm` that no other project fills or reads; what is in it ends with the last process that sees it.
fn own_shared_memory(size: u64) -> Result<()> {
    let doing = || "cannot mount a /dev/shm for the step".to_string();
    let at = open_dir(Path::new("/dev/shm"))?;
    let options = std::ffi::CString::new(format!("mode=1777,size={size},nr_inodes=65536")).context(doing)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", magic(&at), "tmpfs", flags, options.as_c_str()).context(doing)
}

/// Mounts a `/proc` that shows a user only the user's own processes.
///
/// `hidepid=invisible` is a word that exactly those kernels know whose every mount of `/proc` has options of its own. On
/// an older one, `hidepid=2` here would change the `/proc` of the whole machine, so it is never tried.
fn hide_processes() -> rustix::io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", "/proc", "proc", flags, c"hidepid=invisible")
}

/// Brings up the loopback device, which is number 1 in every network namespace: one message of rtnetlink(7).
fn raise_loopback() -> std::io::Result<()> {
    const NEW_LINK: u16 = 16;
    const REQUEST_AND_ANSWER: u16 = 1 | 4;
    const UP: u32 = 1;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let mut message = Vec::new();
    message.extend(32_u32.to_ne_bytes());
    message.extend(NEW_LINK.to_ne_bytes());
    message.extend(REQUEST_AND_ANSWER.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(1_i32.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    let mut socket = File::from(socket);
    socket.write_all(&message)?;
    // The answer repeats the message behind a number that is 0 or a negative error.
    let mut answer = [0_u8; 256];
    let n = socket.read(&mut answer)?;
    let code = answer.get(16..20).filter(|_| n >= 20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(std::io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(std::io::ErrorKind::InvalidData.into()),
    }
}
