//! Bind mounts that come back after a boot, as text: a mount unit of systemd, or a line of `fstab`.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The name of the mount unit of a path, as systemd wants it (systemd-escape(1), `--path --suffix=mount`).
#[must_use]
pub fn unit_name(path: &Path) -> String {
    let mut name = String::new();
    for part in path.as_os_str().as_bytes().split(|b| *b == b'/').filter(|part| !part.is_empty()) {
        if !name.is_empty() {
            name.push('-');
        }
        for byte in part {
            let is_first = name.is_empty();
            match byte {
                b'.' if is_first => name.push_str("\\x2e"),
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => name.push(char::from(*byte)),
                other => {
                    let _ = write!(name, "\\x{other:02x}");
                }
            }
        }
    }
    if name.is_empty() {
        name.push('-');
    }
    format!("{name}.mount")
}

/// The mount unit that shows `what` at `at`; `owner` is whose it is, for people.
///
/// It is wanted and not required: a project that cannot be shown must not keep a machine from booting.
#[must_use]
pub fn unit_text(what: &Path, at: &Path, owner: &str) -> String {
    // Specifiers begin with a percent sign (systemd.unit(5)).
    let shown = |path: &Path| path.display().to_string().replace('%', "%%");
    format!(
        "# Made by mc_project; mc_project init {owner} repairs it.\n\
         [Unit]\nDescription=what runs of {owner}, at its project directory\n\n\
         [Mount]\nWhat={}\nWhere={}\nType=none\nOptions=bind\n\n\
         [Install]\nWantedBy=multi-user.target\n",
        shown(what),
        shown(at)
    )
}

/// A path as a field of fstab(5): blanks and backslashes as octal escapes.
fn field(path: &Path) -> Vec<u8> {
    let mut field = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => field.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
            other => field.push(*other),
        }
    }
    field
}

/// Whether a line of fstab mounts something at this field.
fn is_at(line: &[u8], at: &[u8]) -> bool {
    let mut fields = line.split(|b| matches!(b, b' ' | b'\t')).filter(|field| !field.is_empty());
    fields.next().is_some_and(|what| !what.starts_with(b"#")) && fields.next() == Some(at)
}

/// The text of an fstab without what is mounted at `at`; everything else stays byte for byte.
#[must_use]
pub fn fstab_without(text: &[u8], at: &Path) -> Vec<u8> {
    let at = field(at);
    let lines = text.split_inclusive(|b| *b == b'\n');
    lines.filter(|line| !is_at(line.strip_suffix(b"\n").unwrap_or(line), &at)).flatten().copied().collect()
}

/// The text of an fstab in which exactly one line shows `what` at `at`.
///
/// `nofail`: where systemd reads it after all, a missing project must not keep the machine from booting.
#[must_use]
pub fn fstab_with(text: &[u8], what: &Path, at: &Path, owner: &str) -> Vec<u8> {
    let mut line = field(what);
    line.push(b' ');
    line.extend(field(at));
    line.extend_from_slice(format!(" none bind,nofail 0 0 # mc_project {owner}\n").as_bytes());
    if text.split_inclusive(|b| *b == b'\n').any(|present| present == line) {
        return text.to_vec();
    }
    let mut all = fstab_without(text, at);
    if all.last().is_some_and(|last| *last != b'\n') {
        all.push(b'\n');
    }
    all.extend(line);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_names_are_those_of_systemd() {
        let known = [
            ("/srv/projects/a-b/project", r"srv-projects-a\x2db-project.mount"),
            ("/srv/pro jects/ä.x/.y/project", r"srv-pro\x20jects-\xc3\xa4.x-.y-project.mount"),
            ("/.hid/x", r"\x2ehid-x.mount"),
            ("/", "-.mount"),
            ("/a//b/", "a-b.mount"),
            (r"/a\b", r"a\x5cb.mount"),
            ("/srv/%x", r"srv-\x25x.mount"),
        ];
        for (path, name) in known {
            assert_eq!(unit_name(Path::new(path)), name);
        }
        let mut systemd = std::process::Command::new("systemd-escape");
        systemd.args(["--path", "--suffix=mount"]).args(known.map(|(path, _)| path));
        match systemd.output() {
            Ok(said) => {
                let said = String::from_utf8(said.stdout).unwrap();
                assert_eq!(said.trim().split(' ').collect::<Vec<_>>(), known.map(|(_, name)| name));
            }
            Err(error) => eprintln!("skipped: no systemd-escape here: {error}"),
        }
    }

    #[test]
    fn a_unit_is_wanted_and_knows_no_specifiers() {
        let text = unit_text(Path::new("/srv/%p/run"), Path::new("/srv/%p/project"), "shop");
        assert!(text.contains("What=/srv/%%p/run\nWhere=/srv/%%p/project\n"), "{text}");
        assert!(text.contains("WantedBy=multi-user.target") && !text.contains("Required"), "{text}");
    }

    #[test]
    fn a_line_of_fstab_comes_and_goes_and_all_others_stay() {
        let others = b"# /srv/a/run /srv/a/project\nUUID=x / ext4 rw\t0 1\n/dev/sdb /srv/a/projects ext4 rw 0 0";
        let (what, at) = (Path::new("/srv/a b/run"), Path::new("/srv/a b/project"));
        let with = fstab_with(others, what, at, "a");
        let line = "/srv/a\\040b/run /srv/a\\040b/project none bind,nofail 0 0 # mc_project a\n";
        assert_eq!(String::from_utf8_lossy(&with), format!("{}\n{line}", String::from_utf8_lossy(others)));
        assert_eq!(fstab_with(&with, what, at, "a"), with, "once is enough");
        let moved = fstab_with(&with, Path::new("/srv/a b/run2"), at, "a");
        assert_eq!(moved.split(|b| *b == b'\n').count(), 5, "the old line is replaced");
        assert_eq!(fstab_without(&with, at), [others.as_slice(), b"\n"].concat());
        assert_eq!(fstab_without(others, Path::new("/srv/a/project")), others, "a comment is no line");
        assert_eq!(fstab_with(b"", what, at, "a"), line.as_bytes());
    }
}
