//! Names inside a tree that are refused because they mean something to git or to us.

/// Why a name may not stand in a tree; `None` if it may.
pub fn problem(name: &[u8]) -> Option<&'static str> {
    if name.is_empty() {
        return Some("has an empty name");
    }
    if name.contains(&b'/') {
        return Some("has a `/` inside a name");
    }
    if name == b"." || name == b".." {
        return Some("is `.` or `..`");
    }
    if name.len() >= RESERVED.len() && name[..RESERVED.len()].eq_ignore_ascii_case(RESERVED) {
        return Some("begins with `.mc_project`, which is reserved");
    }
    is_any_of(name, &[b".git", b"git~1"]).then_some("is `.git` or one of its disguises")
}

const RESERVED: &[u8] = b".mc_project";

/// Whether some program would take the name for `.gitmodules`.
pub fn is_gitmodules(name: &[u8]) -> bool {
    // The short names that NTFS makes for it (git's `is_ntfs_dotgitmodules`).
    is_any_of(name, &[b".gitmodules", b"gitmod~1", b"gitmod~2", b"gitmod~3", b"gitmod~4", b"gi7eba~1"])
}

/// Whether a name is one of these for a file system that ignores case, that ignores invisible characters (HFS+), or
/// for which a backslash separates and trailing dots, blanks and `:streams` do not count (NTFS).
fn is_any_of(name: &[u8], known: &[&[u8]]) -> bool {
    let mut seen = Vec::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        let mut buffer = [0_u8; 4];
        for c in chunk.valid().chars().filter(|c| !is_ignored(*c)) {
            seen.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
        }
        seen.extend_from_slice(chunk.invalid());
    }
    seen.split(|b| *b == b'\\').any(|part| {
        let part = part.split(|b| *b == b':').next().unwrap_or_default();
        let end = part.iter().rposition(|b| !matches!(b, b' ' | b'.')).map_or(0, |i| i + 1);
        known.iter().any(|name| part[..end].eq_ignore_ascii_case(name))
    })
}

/// What HFS+ ignores in names (git's `next_hfs_char`), and the other characters without width.
fn is_ignored(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_is_recognised_in_every_disguise() {
        let bad = [
            ".git",
            ".GIT",
            ".Git",
            "git~1",
            "GIT~1",
            ".git ",
            ".git.",
            ".git . .",
            ".g\u{200c}it",
            "\u{feff}.git",
            ".git\u{200b}",
            ".git::$INDEX_ALLOCATION",
            ".git\\hooks",
            "a\\.git",
            "git~1:x",
            ".",
            "..",
            "",
            "a/b",
            "/",
            "../x",
            ".mc_project",
            ".mc_project-staging",
            ".MC_Project.x",
        ];
        for name in bad {
            assert!(problem(name.as_bytes()).is_some(), "{name:?}");
        }
    }

    #[test]
    fn ordinary_and_odd_names_are_fine() {
        let good = [
            "a",
            ".gitignore",
            ".gitattributes",
            ".gitmodules",
            ".github",
            "git",
            "git~2",
            "x.git",
            ".git2",
            "...",
            " ",
            "mc_project.yaml",
            "a\\b",
            "a\nb",
            "\u{1b}[31m",
            "-rf",
            "é",
            ".gi\u{131}t",
            "C:",
        ];
        for name in good {
            assert_eq!(problem(name.as_bytes()), None, "{name:?}");
        }
        assert_eq!(problem(b"\xff\xfe"), None);
        assert_eq!(problem(b".gi\xfft"), None);
    }

    #[test]
    fn gitmodules_is_recognised_in_every_disguise() {
        for name in [".gitmodules", ".GITMODULES", ".gitmodules.", "gitmod~1", ".gitmod\u{200d}ules", "GI7EBA~1"] {
            assert!(is_gitmodules(name.as_bytes()), "{name:?}");
        }
        assert!(!is_gitmodules(b".gitmodule") && !is_gitmodules(b".git"));
    }
}
