//! Globs for names and paths in a tree, in the manner of `.gitignore`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use serde::de::{Deserialize, Deserializer};

use crate::project::yaml::scalar::from_text;
use crate::project::yaml::with_hint;
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;
use crate::sys::path::TreePath;

/// A list of compiled globs.
///
/// A glob without `/` matches a name at any depth, one with `/` a path from the root of the tree. One that ends in `/`
/// matches directories only. Whatever lies below a match is matched too. `*` and `?` do not match `/`, `**` does.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    globs: Vec<String>,
    all: GlobSet,
    dirs: GlobSet,
}

impl PartialEq for Patterns {
    fn eq(&self, other: &Self) -> bool {
        self.globs == other.globs
    }
}

impl Eq for Patterns {}

impl Patterns {
    /// Compiles globs.
    ///
    /// # Errors
    /// If one is no good glob or all together are too large.
    pub fn new(globs: &[String]) -> Result<Self> {
        let (mut all, mut dirs) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for glob in globs {
            let (body, dirs_only) = check_glob(glob).map_err(Error::invalid)?;
            let set = if dirs_only { &mut dirs } else { &mut all };
            set.add(compile(body).map_err(Error::invalid)?);
        }
        let build = |set: &GlobSetBuilder| {
            set.build().map_err(|error| Error::invalid("the globs are too large together").because(error))
        };
        Ok(Self { globs: globs.to_vec(), all: build(&all)?, dirs: build(&dirs)? })
    }

    /// The globs as they were written.
    #[must_use]
    pub fn globs(&self) -> &[String] {
        &self.globs
    }

    /// Whether there is no glob.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.globs.is_empty()
    }

    /// Whether a path or a directory above it is matched.
    #[must_use]
    pub fn matches(&self, path: &TreePath, is_dir: bool) -> bool {
        if self.is_empty() {
            return false;
        }
        let bytes = path.as_bytes();
        let is_match = |part: &[u8], is_dir: bool| {
            let part = OsStr::from_bytes(part);
            self.all.is_match(part) || (is_dir && self.dirs.is_match(part))
        };
        memchr::memchr_iter(b'/', bytes).any(|end| is_match(&bytes[..end], true)) || is_match(bytes, is_dir)
    }
}

/// Checks one glob alone, for the place where it is written.
///
/// # Errors
/// The message.
pub fn check(glob: &str) -> Result<(), String> {
    let (body, _) = check_glob(glob)?;
    compile(body).map(|_| ())
}

/// The glob without its trailing slash, and whether it had one.
fn check_glob(glob: &str) -> Result<(&str, bool), String> {
    let shown = visible_bounded(glob.as_bytes(), 80);
    if glob.starts_with('!') {
        let message = format!("glob `{shown}` begins with `!`, exceptions are not available");
        return Err(with_hint(&message, "a file whose name begins with ! is written [!]…"));
    }
    let body = glob.strip_suffix('/').unwrap_or(glob);
    let parts = body.strip_prefix('/').unwrap_or(body);
    let bad = |part: &str| matches!(part, "" | "." | "..");
    if glob.len() > 1024 || glob.contains(char::is_control) || parts.split('/').any(bad) {
        return Err(format!("`{shown}` is no glob for a path in a tree"));
    }
    Ok((body, body.len() != glob.len()))
}

fn compile(body: &str) -> Result<globset::Glob, String> {
    let anchored = match body.strip_prefix('/') {
        Some(rest) => rest.to_string(),
        None if body.contains('/') => body.to_string(),
        None => format!("**/{body}"),
    };
    GlobBuilder::new(&anchored).literal_separator(true).build().map_err(|error| {
        let shown = visible_bounded(body.as_bytes(), 80);
        format!("`{shown}` is no glob: {}", visible_bounded(error.kind().to_string().as_bytes(), 120))
    })
}

/// One glob as it is written.
pub struct Glob(pub String);

impl<'de> Deserialize<'de> for Glob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a glob", |text| check(text).map(|()| Self(text.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use super::Patterns;
    use crate::sys::path::TreePath;

    fn matches(glob: &str, path: &[u8], is_dir: bool) -> bool {
        Patterns::new(&[glob.to_string()]).unwrap().matches(&TreePath::new(path).unwrap(), is_dir)
    }

    #[test]
    fn a_glob_without_slash_matches_a_name_at_any_depth() {
        assert!(matches("*.pyc", b"a.pyc", false));
        assert!(matches("*.pyc", b"a/b/c.pyc", false));
        assert!(!matches("*.pyc", b"a/b/c.py", false));
        assert!(matches("*.pyc", b"a/\xff.pyc", false));
        assert!(matches(".git", b"a/.git/config", false));
        assert!(!matches("git", b".git/config", false));
    }

    #[test]
    fn a_glob_with_a_trailing_slash_matches_directories_and_all_below() {
        assert!(matches("__pycache__/", b"a/__pycache__", true));
        assert!(!matches("__pycache__/", b"a/__pycache__", false));
        assert!(matches("__pycache__/", b"a/__pycache__/x/y", false));
        assert!(!matches("var/cache/", b"x/var/cache", true));
    }

    #[test]
    fn a_glob_with_a_slash_is_a_path_from_the_root() {
        assert!(matches("/a", b"a", false));
        assert!(!matches("/a", b"b/a", false));
        assert!(matches("a/*.log", b"a/x.log", false));
        assert!(!matches("a/*.log", b"a/b/x.log", false));
        assert!(matches("a/**/x", b"a/b/c/x/deep", false));
    }

    #[test]
    fn bad_globs_are_refused() {
        for bad in ["", "/", "a//b", "../x", "a/./b", "[", "{a", "!x", "a\0", "a\n"] {
            assert!(Patterns::new(&[bad.to_string()]).is_err(), "{bad:?}");
        }
        assert!(!Patterns::default().matches(&TreePath::new(b"a").unwrap(), false));
    }
}
