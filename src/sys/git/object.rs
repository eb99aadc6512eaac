//! Raw commits, tags and trees as git writes them, parsed without trust; pure.

use crate::sys::error::{Error, Result};
use crate::sys::names::ObjectId;

use super::ObjectFormat;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// The content of a file.
    Blob,
    /// A directory.
    Tree,
    /// A commit.
    Commit,
    /// An annotated tag.
    Tag,
}

impl ObjectKind {
    /// The name that git gives it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Tree => "tree",
            Self::Commit => "commit",
            Self::Tag => "tag",
        }
    }

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Blob, Self::Tree, Self::Commit, Self::Tag].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Kind and size of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: ObjectKind,
    /// Its size in bytes.
    pub size: u64,
}

/// What a commit says about itself; all text is strangers' text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    /// Its id.
    pub id: ObjectId,
    /// Its parents; in a shallow repository they may be missing.
    pub parents: Vec<ObjectId>,
    /// The first paragraph of its message in one line, at most 1000 characters.
    pub subject: String,
    /// Its author as `Name <mail>`.
    pub author: String,
    /// When it was committed, in seconds since the epoch, as the committer's clock said.
    pub time: i64,
}

/// One entry of a raw tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEntry<'a> {
    /// The mode, in octal digits as written.
    pub mode: &'a [u8],
    /// The name.
    pub name: &'a [u8],
    /// What it names.
    pub id: ObjectId,
}

/// The entries of a raw tree, as they stand there.
///
/// # Errors
/// What is wrong with the tree: it ends in the middle of an entry.
pub fn parse_tree(bytes: &[u8], format: ObjectFormat) -> std::result::Result<Vec<RawEntry<'_>>, &'static str> {
    let id_length = format.digits() / 2;
    let mut entries = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = memchr::memchr(b' ', rest).ok_or("has an entry without a mode")?;
        let (mode, after) = (&rest[..space], &rest[space + 1..]);
        let nul = memchr::memchr(0, after).ok_or("has an entry without an end")?;
        let (name, after) = (&after[..nul], &after[nul + 1..]);
        let (id, after) = after.split_at_checked(id_length).ok_or("has an entry with a short id")?;
        entries.push(RawEntry { mode, name, id: id_from_raw(id).ok_or("has an entry with a bad id")? });
        rest = after;
    }
    Ok(entries)
}

fn id_from_raw(raw: &[u8]) -> Option<ObjectId> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |b: u8| char::from(DIGITS[usize::from(b)]);
    let text: String = raw.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect();
    text.parse().ok()
}

/// The tree of a raw commit.
///
/// # Errors
/// If the commit is malformed.
pub fn commit_tree(id: &ObjectId, raw: &[u8]) -> Result<ObjectId> {
    header_ids(raw, b"tree ").next().ok_or_else(|| malformed(id, "commit"))
}

/// The object that a raw tag points to.
///
/// # Errors
/// If the tag is malformed.
pub fn tag_target(id: &ObjectId, raw: &[u8]) -> Result<ObjectId> {
    header_ids(raw, b"object ").next().ok_or_else(|| malformed(id, "tag"))
}

/// Reads a raw commit.
///
/// # Errors
/// If it is malformed beyond what git itself forgives.
pub fn parse_commit(id: &ObjectId, raw: &[u8]) -> Result<CommitInfo> {
    commit_tree(id, raw)?;
    let latin = header(raw, b"encoding ").is_some_and(|name| {
        [&b"iso-8859-1"[..], b"iso8859-1", b"latin1", b"latin-1"].iter().any(|known| name.eq_ignore_ascii_case(known))
    });
    let text = |bytes: &[u8]| -> String {
        if latin { bytes.iter().map(|b| char::from(*b)).collect() } else { String::from_utf8_lossy(bytes).into_owned() }
    };
    let person = |line: Option<&[u8]>| -> (String, i64) {
        let line = line.unwrap_or_default();
        let end = memchr::memrchr(b'>', line).map_or(0, |i| i + 1);
        let time = String::from_utf8_lossy(&line[end..]).split_whitespace().next().and_then(|s| s.parse().ok());
        (text(&line[..end]).trim().to_string(), time.unwrap_or(0))
    };
    Ok(CommitInfo {
        id: id.clone(),
        parents: header_ids(raw, b"parent ").collect(),
        subject: subject(&text(message(raw))),
        author: person(header(raw, b"author ")).0,
        time: person(header(raw, b"committer ")).1,
    })
}

/// The first paragraph in one line, as `git log --format=%s` shows it.
fn subject(message: &str) -> String {
    let lines =
        message.lines().map(str::trim_end).skip_while(|line| line.is_empty()).take_while(|line| !line.is_empty());
    let mut subject = String::new();
    for line in lines {
        if subject.len() > 4000 {
            break;
        }
        if !subject.is_empty() {
            subject.push(' ');
        }
        subject.push_str(line);
    }
    subject.chars().take(1000).collect()
}

fn head_lines(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    raw.split(|b| *b == b'\n').take_while(|line| !line.is_empty())
}

fn header<'a>(raw: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    head_lines(raw).find_map(|line| line.strip_prefix(key))
}

fn header_ids<'a>(raw: &'a [u8], key: &'a [u8]) -> impl Iterator<Item = ObjectId> + 'a {
    head_lines(raw).filter_map(move |line| std::str::from_utf8(line.strip_prefix(key)?).ok()?.parse().ok())
}

fn message(raw: &[u8]) -> &[u8] {
    memchr::memmem::find(raw, b"\n\n").map_or(&[], |i| &raw[i + 2..])
}

fn malformed(id: &ObjectId, kind: &str) -> Error {
    Error::failed(format!("{kind} {} is malformed", id.short()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: &str) -> ObjectId {
        digit.repeat(40).parse().unwrap()
    }

    #[test]
    fn a_commit_with_odd_headers_is_read() {
        let raw = format!(
            "tree {}\nparent {}\nparent {}\nauthor  A <b@c> 5 +0100\ncommitter X <y> -7 +0000\nencoding ISO-8859-1\n\
             gpgsig x\n parent {}\n\n\none \ntwo\n\nbody\n",
            id("1"),
            id("2"),
            id("3"),
            id("4")
        );
        let mut raw = raw.into_bytes();
        let at = memchr::memmem::find(&raw, b"one").unwrap();
        raw.insert(at, 0xe9);
        let commit = parse_commit(&id("a"), &raw).unwrap();
        assert_eq!(commit.parents, [id("2"), id("3")]);
        assert_eq!((commit.subject.as_str(), commit.author.as_str(), commit.time), ("éone two", "A <b@c>", -7));
    }

    #[test]
    fn a_commit_without_tree_is_malformed_and_one_without_message_is_not() {
        assert!(parse_commit(&id("a"), b"author x\n\nhi").is_err());
        let commit = parse_commit(&id("a"), format!("tree {}\n", id("1")).as_bytes()).unwrap();
        assert_eq!((commit.subject.as_str(), commit.time), ("", 0));
    }

    #[test]
    fn a_truncated_tree_is_no_tree() {
        let mut raw = b"100644 a\0".to_vec();
        raw.extend([0xab; 20]);
        assert_eq!(parse_tree(&raw, ObjectFormat::Sha1).unwrap()[0].id.as_str(), "ab".repeat(20));
        for cut in 1..raw.len() {
            assert!(parse_tree(&raw[..cut], ObjectFormat::Sha1).is_err(), "{cut}");
        }
        assert!(parse_tree(&raw, ObjectFormat::Sha256).is_err());
    }
}
