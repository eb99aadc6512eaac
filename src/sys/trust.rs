//! Whether a program may be run as root: nobody else may be able to change it, or what leads to it.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};

use super::error::{Context, Error, Result};

/// The permission bits with which others than the owner may write.
const OTHERS_WRITE: u32 = 0o022;

/// Refuses a program that is not root's alone: each part of its path must be a real directory or file of root's that
/// neither its group nor others may write to, and no part may be a symbolic link.
///
/// # Errors
/// The refusal, naming the part and what to do.
pub fn refuse_unless_roots_alone(program: &Path) -> Result<()> {
    if !program.is_absolute() {
        return Err(Error::bug(format!("{} is no absolute path", program.display())));
    }
    for part in program.ancestors() {
        let stat = rustix::fs::statx(CWD, part, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
            .context(|| format!("cannot examine {}", part.display()))?;
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        let wanted = if part == program { FileType::RegularFile } else { FileType::Directory };
        if let Some(fault) = fault_of(kind, wanted, stat.stx_uid, u32::from(stat.stx_mode)) {
            let hint = match (kind, super::fs::canonical(program)) {
                (FileType::Symlink, Ok(real)) => format!("name the program itself: {}", real.display()),
                _ => format!("chown root:root {0}; chmod go-w {0}", part.display()),
            };
            return Err(Error::refused(format!(
                "{} is not run as root: {} {fault}",
                program.display(),
                part.display()
            ))
            .hint(hint));
        }
    }
    Ok(())
}

/// What is wrong with one part of the path.
fn fault_of(kind: FileType, wanted: FileType, uid: u32, mode: u32) -> Option<&'static str> {
    if kind == FileType::Symlink {
        return Some("is a symbolic link");
    }
    if kind != wanted {
        return Some(if wanted == FileType::Directory { "is no directory" } else { "is no regular file" });
    }
    if uid != 0 {
        return Some("is not root's");
    }
    if mode & OTHERS_WRITE != 0 {
        return Some("can be written to by others than root");
    }
    (wanted == FileType::RegularFile && mode & 0o100 == 0).then_some("is not executable")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn every_way_in_which_somebody_else_could_change_it_is_a_fault() {
        let (file, dir, link) = (FileType::RegularFile, FileType::Directory, FileType::Symlink);
        assert_eq!(fault_of(file, file, 0, 0o755), None);
        assert_eq!(fault_of(dir, dir, 0, 0o755), None);
        for (kind, wanted, uid, mode) in [
            (link, file, 0, 0o777),
            (link, dir, 0, 0o777),
            (dir, file, 0, 0o755),
            (file, dir, 0, 0o755),
            (file, file, 1000, 0o755),
            (dir, dir, 1000, 0o755),
            (file, file, 0, 0o775),
            (file, file, 0, 0o757),
            (dir, dir, 0, 0o775),
            (dir, dir, 0, 0o1777),
            (file, file, 0, 0o644),
        ] {
            assert!(fault_of(kind, wanted, uid, mode).is_some(), "{kind:?} {wanted:?} {uid} {mode:o}");
        }
    }

    #[test]
    fn real_paths_are_judged_as_they_are() {
        let real = std::fs::canonicalize("/bin/ls").unwrap();
        refuse_unless_roots_alone(&real).unwrap();
        assert!(refuse_unless_roots_alone(Path::new("/no/such/program")).is_err());
        assert!(refuse_unless_roots_alone(Path::new("/bin")).is_err());
        let open = tempfile::tempdir_in("/tmp").unwrap();
        let program = open.path().join("grow");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(refuse_unless_roots_alone(&program).is_err(), "/tmp is everybody's");
    }

    #[test]
    fn a_program_of_roots_in_a_directory_of_roots_stops_being_run_when_either_changes() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can make a program that is root's");
            return;
        }
        let dir = tempfile::tempdir_in("/var/lib").unwrap();
        let program = dir.path().join("grow");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        let refused = || refuse_unless_roots_alone(&program).err().map(|error| error.to_string()).unwrap_or_default();
        set(&program, 0o755);
        assert_eq!(refused(), "");
        set(&program, 0o775);
        assert!(refused().contains("can be written to by others than root"), "{}", refused());
        set(&program, 0o755);
        set(dir.path(), 0o707);
        assert!(refused().contains("can be written to by others than root"), "{}", refused());
        set(dir.path(), 0o700);
        chown(&program, Some(1), None).unwrap();
        assert!(refused().contains("is not root's"), "{}", refused());
        chown(&program, Some(0), None).unwrap();
        symlink(&program, dir.path().join("link")).unwrap();
        let error = refuse_unless_roots_alone(&dir.path().join("link")).unwrap_err();
        assert!(error.hint_text().unwrap().ends_with(program.to_str().unwrap()), "{error}");
    }
}
