//! A path inside a tree: relative, byte-exact, and unable to leave the tree.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::error::{Error, Result};

/// The longest name of one path component, in bytes.
pub const MAX_NAME: usize = 255;
/// The longest path inside a tree, in bytes.
pub const MAX_PATH: usize = 1024;
/// The deepest nesting inside a tree.
pub const MAX_DEPTH: usize = 64;

/// A relative path without `.`, `..`, empty components or NUL; any other byte is allowed.
///
/// The order is that of the bytes, in which a directory stands before everything inside it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(Box<[u8]>);

impl TreePath {
    /// Checks and takes a path.
    ///
    /// # Errors
    /// If the path is empty, absolute, could leave the tree or passes a limit.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        let problem = Self::problem(bytes);
        match problem {
            None => Ok(Self(bytes.into())),
            Some(problem) => {
                Err(Error::refused(format!("path `{}` {problem}", super::escape::visible_bounded(bytes, 256))))
            }
        }
    }

    fn problem(bytes: &[u8]) -> Option<String> {
        if bytes.is_empty() {
            return Some("is empty".into());
        }
        if bytes.len() > MAX_PATH {
            return Some(format!("has {} bytes, the limit is {MAX_PATH}", bytes.len()));
        }
        if memchr::memchr(0, bytes).is_some() {
            return Some("holds a NUL byte".into());
        }
        let (mut depth, mut begin) = (0, 0);
        for end in memchr::memchr_iter(b'/', bytes).chain(std::iter::once(bytes.len())) {
            depth += 1;
            match &bytes[begin..end] {
                b"" => return Some("is absolute or has an empty component".into()),
                b"." | b".." => return Some("holds `.` or `..`".into()),
                name if name.len() > MAX_NAME => {
                    return Some(format!("has a name of {} bytes, the limit is {MAX_NAME}", name.len()));
                }
                _ => {}
            }
            begin = end + 1;
        }
        (depth > MAX_DEPTH).then(|| format!("is {depth} levels deep, the limit is {MAX_DEPTH}"))
    }

    /// The path as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as [`Path`], for system calls relative to a directory descriptor.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The last component.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        let start = memchr::memrchr(b'/', &self.0).map_or(0, |i| i + 1);
        OsStr::from_bytes(&self.0[start..])
    }

    /// The directory that holds this path; `None` for a path directly below the tree's root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        memchr::memrchr(b'/', &self.0).map(|i| Self(self.0[..i].into()))
    }

    /// All directories that hold this path, the nearest first.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> + use<> {
        std::iter::successors(self.parent(), Self::parent)
    }

    /// This path with one more component.
    ///
    /// # Errors
    /// If the result passes a limit or the name is no single component.
    pub fn join(&self, name: &[u8]) -> Result<Self> {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        // What stands before the name was checked when this path was made; a walk over a large tree notices.
        let is_plain = !matches!(name, b"" | b"." | b"..") && name.len() <= MAX_NAME && bytes.len() <= MAX_PATH;
        let is_single = memchr::memchr2(b'/', 0, name).is_none();
        let is_deep = memchr::memchr_iter(b'/', &self.0).count() + 2 > MAX_DEPTH;
        if is_plain && is_single && !is_deep { Ok(Self(bytes.into())) } else { Self::new(&bytes) }
    }

    /// Where it is below a directory; `None` if it is not in there.
    #[must_use]
    pub fn below(&self, ancestor: &Self) -> Option<Self> {
        self.0.strip_prefix(&*ancestor.0)?.strip_prefix(b"/").map(|rest| Self(rest.into()))
    }

    /// What a link in the directory `from` (`None`: the top) leads to; `None` if that is absolute or not in the tree.
    #[must_use]
    pub fn resolve(from: Option<&Self>, target: &[u8]) -> Option<Self> {
        if target.starts_with(b"/") {
            return None;
        }
        let mut at: Vec<&[u8]> = from.map(|from| from.0.split(|b| *b == b'/').collect()).unwrap_or_default();
        for part in target.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(at.pop()?),
                name => at.push(name),
            }
        }
        Self::new(&at.join(&b'/')).ok()
    }

    /// Whether this path is `ancestor` or lies below it.
    #[must_use]
    pub fn is_within(&self, ancestor: &Self) -> bool {
        self.0.strip_prefix(&*ancestor.0).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }

    /// The path in printable ASCII without spaces: other bytes and `%` are written `%XX`. [`TreePath::from_escaped`] reads it back.
    #[must_use]
    pub fn escaped(&self) -> String {
        escape(&self.0)
    }

    /// Reads what [`TreePath::escaped`] wrote.
    ///
    /// # Errors
    /// If the text is not of that form or is no good path.
    pub fn from_escaped(text: &str) -> Result<Self> {
        if text.bytes().all(is_plain) {
            return Self::new(text.as_bytes());
        }
        let bytes = unescape(text)
            .ok_or_else(|| Error::failed(format!("bad escape in path `{}`", super::escape::in_sentence(text))))?;
        Self::new(&bytes)
    }
}

/// Whether a byte stands for itself in an escaped text.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~') && byte != b'%'
}

/// Writes bytes as printable ASCII without spaces (`%XX` for the rest).
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    escape_into(&mut out, bytes);
    out
}

/// As [`escape`], added to a text.
pub fn escape_into(out: &mut String, bytes: &[u8]) {
    if let Some(text) = std::str::from_utf8(bytes).ok().filter(|_| bytes.iter().copied().all(is_plain)) {
        out.push_str(text);
        return;
    }
    for b in bytes {
        if is_plain(*b) {
            out.push(char::from(*b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
}

/// Reads what [`escape`] wrote; `None` if the text is not of that form.
#[must_use]
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            b'!'..=b'~' => out.push(b),
            _ => return None,
        }
    }
    Some(out)
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.escaped())
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&super::escape::visible_bounded(&self.0, MAX_PATH))
    }
}

impl serde::Serialize for TreePath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.escaped())
    }
}

impl<'de> serde::Deserialize<'de> for TreePath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        Self::from_escaped(&text).map_err(|e| serde::de::Error::custom(e.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_paths_are_refused_with_the_limit_named() {
        let long_name = vec![b'a'; 300];
        let long_path = b"abcdefghi/".repeat(120);
        let deep = b"a/".repeat(1500);
        let cases: [&[u8]; 12] =
            [b"", b"/", b"/etc", b"..", b".", b"a/../b", b"a//b", b"a/", b"a\0b", &long_name, &long_path, &deep];
        for bad in cases {
            assert!(TreePath::new(bad).is_err(), "{bad:?}");
        }
        let error = TreePath::new(&long_name).unwrap_err();
        assert!(error.message().contains("300 bytes, the limit is 255"), "{error}");
    }

    #[test]
    fn names_with_any_byte_read_back_exactly() {
        let path = TreePath::new(b"a b/\xff\xfe\n%/\x1b").unwrap();
        assert_eq!(TreePath::from_escaped(&path.escaped()).unwrap(), path);
        assert!(TreePath::from_escaped("a b").is_err());
        assert!(TreePath::from_escaped("a%2").is_err());
    }

    #[test]
    fn parent_name_and_within() {
        let path = TreePath::new(b"a/b/c").unwrap();
        assert_eq!(path.name(), "c");
        assert_eq!(path.parent().unwrap(), TreePath::new(b"a/b").unwrap());
        assert!(path.is_within(&TreePath::new(b"a/b").unwrap()));
        assert!(!path.is_within(&TreePath::new(b"a/bb").unwrap()));
        assert!(!TreePath::new(b"a/bb").unwrap().is_within(&TreePath::new(b"a/b").unwrap()));
    }
}
