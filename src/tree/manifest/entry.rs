//! One entry of a manifest, and the line that it is written as.

use std::fmt::Write as _;

use crate::project::ids::ObjectId;
use crate::sys::path::{TreePath, escape, escape_into, unescape};
use crate::tree::hash::Hash;

/// How the line of an entry is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// As manifests have it.
    Plain,
    /// With its stamp before it, as witnesses have it.
    Stamped,
    /// Without time, owner and git object: the same wherever and whenever the tree was made.
    Portable,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Size in bytes.
        size: u64,
        /// Digest of the content.
        hash: Hash,
    },
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
}

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub path: TreePath,
    /// Permission bits (`& 0o7777`); 0o777 for a link.
    pub mode: u32,
    /// Owner and group; `None` is the project's own user.
    pub owner: Option<(u32, u32)>,
    /// Time of the last modification, nanoseconds since the epoch.
    pub mtime: i64,
    /// What it is.
    pub content: Content,
    /// The first path (by order) of the hard-linked file that this one is another name of.
    pub hard_link: Option<TreePath>,
    /// Extended attributes and ACLs, sorted by name.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// The git object with this content, where one is known.
    pub blob: Option<ObjectId>,
    /// How it stood on the disk, where somebody has looked.
    pub stamp: Stamp,
}

/// How an entry stood on the disk when somebody looked. It is no part of what the entry is: all stamps are equal.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stamp {
    /// The inode; 0 where nobody has looked.
    pub ino: u64,
    /// The status-change time, nanoseconds since the epoch.
    pub ctime: i64,
    /// Whether the clock had moved on when the content was known: then the same inode and times mean the same content.
    pub is_sure: bool,
}

impl Stamp {
    /// Whether both say the same.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.ino, self.ctime, self.is_sure) == (other.ino, other.ctime, other.is_sure)
    }
}

impl PartialEq for Stamp {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Stamp {}

impl Entry {
    /// The digest of a file's content.
    #[must_use]
    pub fn hash(&self) -> Option<Hash> {
        match self.content {
            Content::File { hash, .. } => Some(hash),
            _ => None,
        }
    }

    /// The size of a file, 0 for everything else.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self.content {
            Content::File { size, .. } => size,
            _ => 0,
        }
    }

    /// Whether this is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.content == Content::Dir
    }

    /// Whether both entries have the same content and name structure (mode, owner, time and attributes aside).
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        self.content == other.content && self.hard_link == other.hard_link
    }

    /// Whether mode, owner, attributes and time are the same. The time of a directory counts too.
    #[must_use]
    pub fn same_metadata(&self, other: &Self) -> bool {
        self.mode == other.mode && self.owner == other.owner && self.mtime == other.mtime && self.xattrs == other.xattrs
    }

    /// Whether it would give a file rights that only the node it stands on can give: an owner, setuid, setgid, or an
    /// attribute that the kernel itself obeys.
    #[must_use]
    pub fn has_privileges(&self) -> bool {
        self.mode & 0o6000 != 0
            || self.owner.is_some()
            || self.xattrs.iter().any(|(name, _)| !crate::sys::dir::is_carried(name.as_bytes()))
    }

    /// The entry as a line of a manifest.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = String::with_capacity(160);
        self.write(&mut line, Style::Plain);
        line
    }

    /// Adds the line of this entry to a text, without a line feed.
    pub fn write(&self, line: &mut String, style: Style) {
        if style == Style::Stamped {
            let Stamp { ino, ctime, is_sure } = self.stamp;
            let _ = write!(line, "{ino} {ctime} {} ", if is_sure { '=' } else { '?' });
        }
        let is_portable = style == Style::Portable;
        let letter = match self.content {
            Content::Dir => 'd',
            Content::File { .. } => 'f',
            Content::Symlink(_) => 'l',
        };
        let _ = write!(line, "{letter} {:04o} ", self.mode);
        match self.owner.filter(|_| !is_portable) {
            None => line.push('-'),
            Some((uid, gid)) => {
                let _ = write!(line, "{uid}:{gid}");
            }
        }
        let mtime = if is_portable { 0 } else { self.mtime };
        let (seconds, nanos) = (mtime.div_euclid(1_000_000_000), mtime.rem_euclid(1_000_000_000));
        let _ = write!(line, " {seconds}.{nanos:09} ");
        match &self.content {
            Content::Dir => line.push_str("- -"),
            Content::File { size, hash } => {
                let _ = write!(line, "{size} ");
                hash.write_hex(line);
            }
            Content::Symlink(target) => {
                line.push_str("- ");
                escape_into(line, target);
            }
        }
        line.push(' ');
        escape_into(line, self.path.as_bytes());
        if let Some(blob) = self.blob.as_ref().filter(|_| !is_portable) {
            let _ = write!(line, " git={blob}");
        }
        if let Some(leader) = &self.hard_link {
            let _ = write!(line, " link={}", leader.escaped());
        }
        for (name, value) in &self.xattrs {
            let _ = write!(line, " x:{}={}", escape(name.as_bytes()).replace('=', "%3D"), escape(value));
        }
    }

    /// Reads a line that [`Entry::write`] wrote in this style; `None` if it is damaged.
    #[must_use]
    pub fn parse(line: &str, style: Style) -> Option<Self> {
        let mut fields = Fields { rest: Some(line) };
        let mut stamp = Stamp::default();
        if style == Style::Stamped {
            stamp.ino = fields.next()?.parse().ok()?;
            stamp.ctime = fields.next()?.parse().ok()?;
            stamp.is_sure = match fields.next()? {
                "=" => true,
                "?" => false,
                _ => return None,
            };
        }
        let letter = fields.next()?;
        let mode = u32::from_str_radix(fields.next()?, 8).ok().filter(|m| *m <= 0o7777)?;
        let owner = match fields.next()? {
            "-" => None,
            text => {
                let (uid, gid) = text.split_once(':')?;
                Some((uid.parse().ok()?, gid.parse().ok()?))
            }
        };
        let (seconds, nanos) = fields.next()?.split_once('.')?;
        let nanos: u32 = (nanos.len() == 9).then(|| nanos.parse().ok()).flatten()?;
        let mtime = nanoseconds(seconds.parse().ok()?, nanos)?;
        let (size, third) = (fields.next()?, fields.next()?);
        let content = match letter {
            "d" => Content::Dir,
            "f" => Content::File { size: size.parse().ok()?, hash: third.parse().ok()? },
            "l" => Content::Symlink(unescape(third)?),
            _ => return None,
        };
        let path = TreePath::from_escaped(fields.next()?).ok()?;
        let mut entry =
            Self { path, mode, owner, mtime, content, hard_link: None, xattrs: Vec::new(), blob: None, stamp };
        for field in fields {
            if let Some(blob) = field.strip_prefix("git=") {
                entry.blob = Some(blob.parse().ok()?);
            } else if let Some(leader) = field.strip_prefix("link=") {
                entry.hard_link = Some(TreePath::from_escaped(leader).ok()?);
            } else {
                let (name, value) = field.strip_prefix("x:")?.split_once('=')?;
                entry.xattrs.push((String::from_utf8(unescape(name)?).ok()?, unescape(value)?));
            }
        }
        Some(entry)
    }
}

/// The words of a line between single spaces.
struct Fields<'a> {
    rest: Option<&'a str>,
}

impl<'a> Iterator for Fields<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.rest?;
        let end = memchr::memchr(b' ', rest.as_bytes());
        self.rest = end.map(|end| &rest[end + 1..]);
        Some(&rest[..end.unwrap_or(rest.len())])
    }
}

/// A time as nanoseconds since the epoch.
fn nanoseconds(seconds: i64, nanos: u32) -> Option<i64> {
    let nanos = i64::from(nanos);
    match seconds.checked_mul(1_000_000_000) {
        Some(whole) => whole.checked_add(nanos),
        // The earliest second of an i64 of nanoseconds is no whole one.
        None => seconds.checked_add(1)?.checked_mul(1_000_000_000)?.checked_add(nanos - 1_000_000_000),
    }
}
