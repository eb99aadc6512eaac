//! Mounts: what is mounted where, and whether steps can be given a view of their own.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::dir::Dir;
use super::error::{Context, Error, Result};
use super::process::{self, StepStatus};
use super::step_exec::{Bind, Processes, RunAs, StepOrder};

pub mod persist;

/// One line of a `mountinfo` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The file system, as `major:minor`.
    pub device: String,
    /// Which directory of that file system is mounted.
    pub root: PathBuf,
    /// Where, as seen from the process's root.
    pub point: PathBuf,
}

/// The mounts that a process sees, in the order in which they were mounted; `None` asks for our own.
///
/// # Errors
/// If the process is gone or may not be examined.
pub fn mounts_of(pid: Option<i32>) -> Result<Vec<Mount>> {
    let path = pid.map_or_else(|| PathBuf::from("/proc/self/mountinfo"), |pid| format!("/proc/{pid}/mountinfo").into());
    let bytes = std::fs::read(&path).context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes.split(|b| *b == b'\n').filter_map(parse_mount).collect())
}

/// `36 35 98:0 /root /point options ...` (proc_pid_mountinfo(5)); blanks in names are written `\040`.
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ').skip(2);
    let device = String::from_utf8(fields.next()?.to_vec()).ok()?;
    let root = PathBuf::from(unescape_octal(fields.next()?));
    let point = PathBuf::from(unescape_octal(fields.next()?));
    Some(Mount { device, root, point })
}

/// A mounted hierarchy of control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMount {
    /// Whether it is the unified one (version 2).
    pub is_unified: bool,
    /// Which group is the root of what is mounted.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its options, the names of controllers among them.
    pub options: Vec<String>,
}

/// The hierarchies of control groups that we see.
///
/// # Errors
/// If our mounts cannot be read.
pub fn cgroup_mounts() -> Result<Vec<CgroupMount>> {
    let path = Path::new("/proc/self/mountinfo");
    let bytes = std::fs::read(path).context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes.split(|b| *b == b'\n').filter_map(parse_cgroup_mount).collect())
}

/// The part behind ` - ` is the type, the source and the options of the file system.
fn parse_cgroup_mount(line: &[u8]) -> Option<CgroupMount> {
    let mount = parse_mount(line)?;
    let after = &line[memchr::memmem::find(line, b" - ")? + 3..];
    let mut fields = std::str::from_utf8(after).ok()?.split(' ');
    let is_unified = match fields.next()? {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    let options = fields.nth(1)?.split(',').map(str::to_string).collect();
    Some(CgroupMount { is_unified, root: mount.root, point: mount.point, options })
}

fn unescape_octal(bytes: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        let code =
            (*first == b'\\').then(|| after.get(..3)).flatten().and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = code.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(out)
}

/// Whether something is mounted at this directory.
///
/// # Errors
/// If the directory cannot be examined.
pub fn is_mount_point(dir: &Path) -> Result<bool> {
    let stat = rustix::fs::statx(CWD, dir, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS)
        .context(|| format!("cannot examine {}", dir.display()))?;
    if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Linux < 5.8.
    let real = super::fs::canonical(dir)?;
    Ok(mounts_of(None)?.iter().any(|mount| mount.point == real))
}

/// Whether two paths lie on the same file system and within the same mount, so that names can be exchanged between them.
///
/// # Errors
/// If one of them cannot be examined.
pub fn same_file_system(one: &Path, other: &Path) -> Result<bool> {
    let place = |path: &Path| {
        rustix::fs::statx(CWD, path, AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
            .context(|| format!("cannot examine {}", path.display()))
    };
    let (one, other) = (place(one)?, place(other)?);
    let known = |mask: u32| StatxFlags::from_bits_retain(mask).contains(StatxFlags::MNT_ID);
    let same_mount = !known(one.stx_mask) || !known(other.stx_mask) || one.stx_mnt_id == other.stx_mnt_id;
    Ok(same_mount && (one.stx_dev_major, one.stx_dev_minor) == (other.stx_dev_major, other.stx_dev_minor))
}

/// The device of the file system that holds a path, and the directory that it is mounted at as far as the path tells.
///
/// # Errors
/// If the path cannot be examined.
pub fn file_system_of(path: &Path) -> Result<(u64, PathBuf)> {
    let device = |path: &Path| {
        rustix::fs::statx(CWD, path, AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS)
            .map(|stat| rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor))
            .context(|| format!("cannot examine {}", path.display()))
    };
    let path = super::fs::canonical(path)?;
    let own = device(&path)?;
    let mut top = path.as_path();
    while let Some(parent) = top.parent() {
        if device(parent)? != own {
            break;
        }
        top = parent;
    }
    Ok((own, top.to_path_buf()))
}

/// Shows one directory at the place of another, for everybody. Both are held open: neither name is followed again.
///
/// # Errors
/// If the kernel refuses (we may not mount).
pub fn bind(source: &Dir, at: &Dir) -> Result<()> {
    let doing = || format!("cannot show {} at {}", source.path().display(), at.path().display());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let moved = rustix::mount::open_tree(source.as_fd(), "", flags).and_then(|tree| {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", at.as_fd(), "", flags)
    });
    // Linux < 5.2, and some filters of system calls; the magic links name the very directories that we hold.
    let magic = |dir: &Dir| format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
    moved.or_else(|_| rustix::mount::mount_bind(magic(source), magic(at))).context(doing)
}

/// Takes away what is mounted at a directory, everything if several lie on each other. Who still works in it keeps it, but
/// nobody finds it any more.
///
/// # Errors
/// If the kernel refuses.
pub fn unbind(at: &Path) -> Result<bool> {
    let mut was_mounted = false;
    // A bound, not a count: nobody mounts so often by accident.
    for _ in 0..64 {
        if !super::fs::exists(at) || !is_mount_point(at)? {
            break;
        }
        let doing = || format!("cannot unmount {}", at.display());
        let flags = UnmountFlags::NOFOLLOW;
        let busy = rustix::mount::unmount(at, flags);
        busy.or_else(|_| rustix::mount::unmount(at, flags | UnmountFlags::DETACH)).context(doing)?;
        was_mounted = true;
    }
    Ok(was_mounted)
}

/// How the names of the directories begin in which something is tried out; a killed try leaves one.
pub const PROBE: &str = ".probe-";

/// Really tries whether we may mount a directory on another, and says why not. `scratch` is a directory of ours.
///
/// The environment variable `MC_NO_MOUNTS=1` makes the answer "no", for tests of what happens then.
///
/// # Errors
/// If the test itself could not be made.
pub fn probe_bind(scratch: &Path) -> Result<Result<(), String>> {
    if std::env::var_os("MC_NO_MOUNTS").is_some_and(|value| value == "1") {
        return Ok(Err("switched off by MC_NO_MOUNTS".into()));
    }
    let name = format!("{PROBE}{}", uuid::Uuid::now_v7().simple());
    let dir = Dir::open(scratch)?;
    let place = dir.ensure_dir(Path::new(&name), 0o700)?;
    let (source, at) = (place.ensure_dir(Path::new("source"), 0o700)?, place.ensure_dir(Path::new("at"), 0o700)?);
    let answer = bind(&source, &at).map_err(|error| error.one_line());
    if answer.is_ok() {
        unbind(at.path())?;
    }
    dir.remove_tree(Path::new(&name))?;
    Ok(answer)
}

/// Really tries, in a child process, whether a step can see one directory at the place of another, and says why not.
/// `scratch` is a directory of ours in which two directories are made for the test.
///
/// The environment variable `MC_NO_NAMESPACES=1` makes the answer "no", for tests of what happens then.
///
/// # Errors
/// If the test itself could not be made.
pub fn probe_namespace(scratch: &Path) -> Result<Result<(), String>> {
    if std::env::var_os("MC_NO_NAMESPACES").is_some_and(|value| value == "1") {
        return Ok(Err("switched off by MC_NO_NAMESPACES".into()));
    }
    let name = format!("{PROBE}{}", uuid::Uuid::now_v7().simple());
    let (place, dir) = (scratch.join(&name), Dir::open(scratch)?);
    let answer = probe_in(&place);
    dir.remove_tree(Path::new(&name))?;
    answer
}

fn probe_in(place: &Path) -> Result<Result<(), String>> {
    let (source, at) = (place.join("source"), place.join("at"));
    super::fs::ensure_dir(&source, 0o755)?;
    super::fs::ensure_dir(&at, 0o755)?;
    super::fs::write_durable(&source.join("seen"), b"", 0o644)?;
    let argv = ["/bin/sh", "-c", "test -e ./seen && test -e \"$1/seen\"", "sh"].map(OsString::from);
    let mut order = StepOrder::new(argv.into_iter().chain([at.clone().into()]).collect(), Vec::new(), at.clone());
    order.view.binds = vec![Bind { source, at: at.clone(), read_only: false }];
    let mut silent = Silent;
    let result = process::run_step(&order, Duration::from_secs(20), &mut silent)?;
    if super::fs::exists(&at.join("seen")) {
        return Err(Error::bug(format!("a mount for a step alone is seen by all at {}", at.display())));
    }
    Ok(match result.status {
        StepStatus::Ok => Ok(()),
        StepStatus::CouldNotStart(reason) => Err(reason),
        other => Err(format!("a step does not see the directory: {}", other.words())),
    })
}

/// Really tries whether a step of another user sees only that user's processes, and says why not. Only root can give a
/// step such a view.
///
/// # Errors
/// If the test itself could not be made.
pub fn probe_hidden_processes() -> Result<Result<(), String>> {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return Ok(Err("only root can hide processes from others".into()));
    }
    let argv = ["/bin/sh", "-c", "test ! -e /proc/1"].map(OsString::from);
    let mut order = StepOrder::new(argv.into(), Vec::new(), PathBuf::from("/"));
    order.view.processes = Processes::Own;
    order.run_as = Some(RunAs { uid: NOBODY, gid: NOBODY, groups: Vec::new() });
    let result = process::run_step(&order, Duration::from_secs(20), &mut Silent)?;
    Ok(match result.status {
        StepStatus::Ok => Ok(()),
        StepStatus::Exit(1) => Err("this kernel cannot hide them for one step alone (Linux 5.8 can)".into()),
        StepStatus::CouldNotStart(reason) => Err(reason),
        other => Err(other.words()),
    })
}

struct Silent;

impl process::StepWatcher for Silent {
    fn line(&mut self, _line: &[u8]) {}
}

/// The path of `inner` below `outer`; empty if they are the same.
fn below<'a>(inner: &'a Path, outer: &Path) -> Option<&'a Path> {
    inner.strip_prefix(outer).ok()
}

/// Every place at which a process with these mounts sees the directory `dir` or a part of it; `ours` are our own mounts,
/// in which `dir` is named by its real path.
#[must_use]
pub fn places_of(dir: &Path, ours: &[Mount], theirs: &[Mount]) -> Vec<PathBuf> {
    let depth = |mount: &&Mount| mount.point.as_os_str().len();
    let Some(home) = ours.iter().filter(|mount| dir.starts_with(&mount.point)).max_by_key(depth) else {
        return Vec::new();
    };
    let in_fs = join(&home.root, below(dir, &home.point).unwrap_or(dir));
    let mut places = Vec::new();
    for mount in theirs.iter().filter(|mount| mount.device == home.device) {
        if mount.root.starts_with(&in_fs) {
            places.push(mount.point.clone());
        } else if let Some(rest) = below(&in_fs, &mount.root) {
            places.push(join(&mount.point, rest));
        }
    }
    places.sort();
    places.dedup();
    places
}

fn join(path: &Path, rest: &Path) -> PathBuf {
    // `Path::join` with an empty path would add a slash.
    if rest.as_os_str() == OsStr::from_bytes(b"") { path.to_path_buf() } else { path.join(rest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(device: &str, root: &str, point: &str) -> Mount {
        Mount { device: device.into(), root: root.into(), point: point.into() }
    }

    #[test]
    fn mountinfo_lines_read_back_with_blanks_in_names() {
        let line = b"36 35 98:0 /mnt1 /a\\040b\\134c rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(parse_mount(line).unwrap(), mount("98:0", "/mnt1", "/a b\\c"));
        assert!(parse_mount(b"").is_none());
        assert!(mounts_of(None).unwrap().iter().any(|m| m.point == Path::new("/")));
    }

    #[test]
    fn hierarchies_of_control_groups_are_told_apart() {
        let old = b"35 31 0:32 /a/b /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let read = parse_cgroup_mount(old).unwrap();
        assert_eq!((read.is_unified, read.root.as_path()), (false, Path::new("/a/b")));
        assert_eq!(read.options, ["rw", "memory"]);
        let new = b"41 31 0:38 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert!(parse_cgroup_mount(new).unwrap().is_unified);
        assert_eq!(parse_cgroup_mount(b"36 35 98:0 /mnt1 /a rw - ext3 /dev/root rw"), None);
    }

    #[test]
    fn proc_is_a_mount_point_and_a_new_directory_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(dir.path()).unwrap());
        assert!(is_mount_point(&dir.path().join("none")).is_err());
        assert!(!same_file_system(Path::new("/proc"), dir.path()).unwrap());
        assert!(same_file_system(dir.path(), &std::env::temp_dir()).unwrap());
    }

    #[test]
    fn the_file_system_of_a_path_is_told_by_where_it_is_mounted() {
        let (proc, root) = (file_system_of(Path::new("/proc/self")).unwrap(), file_system_of(Path::new("/")).unwrap());
        assert_eq!((proc.1.as_path(), root.1.as_path()), (Path::new("/proc"), Path::new("/")));
        assert_ne!(proc.0, root.0);
        assert!(file_system_of(Path::new("/no/such/path")).is_err());
    }

    #[test]
    fn a_directory_is_found_at_every_place_where_it_is_mounted() {
        let ours = [mount("8:1", "/", "/"), mount("0:4", "/", "/proc")];
        let theirs = [
            mount("8:1", "/", "/host"),
            mount("8:1", "/p/spare", "/p/run"),
            mount("8:1", "/p/spare/sub", "/x"),
            mount("8:1", "/p/spare2", "/y"),
            mount("8:2", "/p/spare", "/z"),
        ];
        let places = places_of(Path::new("/p/spare"), &ours, &theirs);
        assert_eq!(places, [Path::new("/host/p/spare"), Path::new("/p/run"), Path::new("/x")]);
    }
}
