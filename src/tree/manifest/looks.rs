//! How the entries of a chunk look from outside: what statx(2) tells of them, as one digest. A tree that looks as it did when
//! somebody knew it is that tree, and nothing of what is written down about it need be read.

use super::entry::{Content, Entry};
use crate::tree::hash::Hash;

/// What statx(2) tells of one entry, recorded as an entry has it.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// Its path.
    pub path: &'a [u8],
    /// `d`, `f` or `l`.
    pub kind: u8,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group; `None` is the project's own user.
    pub owner: Option<(u32, u32)>,
    /// Size in bytes, of a file.
    pub size: u64,
    /// Time of the last modification, nanoseconds since the epoch.
    pub mtime: i64,
    /// Time of the last status change, nanoseconds since the epoch.
    pub ctime: i64,
    /// Inode number.
    pub ino: u64,
}

/// The digest of entries in a row.
#[derive(Debug, Default)]
pub struct Looks {
    bytes: Vec<u8>,
}

impl Looks {
    /// Adds one entry.
    pub fn add(&mut self, look: &Look<'_>) {
        let (uid, gid) = look.owner.unwrap_or((u32::MAX, u32::MAX));
        let length = u32::try_from(look.path.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(look.path);
        self.bytes.push(look.kind);
        for word in [look.mode, uid, gid] {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
        for word in [look.size, look.mtime.cast_unsigned(), look.ctime.cast_unsigned(), look.ino] {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
    }

    /// The digest of all that was added.
    #[must_use]
    pub fn digest(&self) -> Hash {
        Hash::of(&self.bytes)
    }

    /// The digest of these entries, if it was sure for each of them that the same look means the same entry.
    #[must_use]
    pub fn of(entries: &[Entry]) -> Option<Hash> {
        let mut looks = Self::default();
        for entry in entries {
            if !entry.stamp.is_sure {
                return None;
            }
            let kind = match entry.content {
                Content::Dir => b'd',
                Content::File { .. } => b'f',
                Content::Symlink(_) => b'l',
            };
            looks.add(&Look {
                path: entry.path.as_bytes(),
                kind,
                mode: entry.mode,
                owner: entry.owner,
                size: entry.size(),
                mtime: entry.mtime,
                ctime: entry.stamp.ctime,
                ino: entry.stamp.ino,
            });
        }
        Some(looks.digest())
    }
}
