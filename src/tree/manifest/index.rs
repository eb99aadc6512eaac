//! The index of a manifest's or a witness's file: where its chunks are and what they hold, so that it need not be read
//! whole. It can be made again from the file at any time; one that does not fit counts as none.
//!
//! ```text
//! mc_project index 2 <bytes of the file> <blake3 of its last line>
//! <offset> <bytes> <entries> <files> <links> <bytes of them> <blake3> <plain> <portable> <looks> <first path>
//! end 1 <blake3 of everything above>
//! ```

use std::fmt::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::chunk::{Chunk, Lines, Source};
use super::entry::Style;
use super::text::{close, opened};
use crate::sys::fs::{self, File};
use crate::sys::path::TreePath;
use crate::tree::hash::Hash;

const FIRST_WORDS: &str = "mc_project index 2 ";
/// Where there is no digest of how a chunk looked.
const NONE: &str = "-";
/// The last line of a file is shorter than this.
const LAST_LINE: u64 = 128;

/// The index of a file that is about to be written: made while the text is.
#[derive(Debug, Default)]
pub struct Indexer {
    lines: Vec<Lines>,
}

impl Indexer {
    /// Adds the lines of a chunk to `text`, and notes where.
    pub fn add(&mut self, text: &mut String, chunk: &Chunk, style: Style) {
        let lines = chunk.lines(style);
        self.lines.push(Lines {
            first: chunk.first().clone(),
            offset: text.len() as u64,
            length: lines.len(),
            count: chunk.count,
            files: chunk.files,
            links: chunk.links,
            bytes: chunk.bytes,
            raw: if style == Style::Plain { chunk.plain() } else { Hash::of(lines.as_bytes()) },
            plain: chunk.plain(),
            portable: chunk.portable(),
            looks: if style == Style::Stamped { chunk.looks() } else { None },
        });
        text.push_str(&lines);
    }

    /// The index of the whole text.
    #[must_use]
    pub fn finish(self, text: &str) -> String {
        let mut out = format!("{FIRST_WORDS}{} {}\n", text.len(), Hash::of(last_line(text.as_bytes())));
        for line in &self.lines {
            let Lines { first, offset, length, count, files, links, bytes, raw, plain, portable, looks } = line;
            let (looks, first) = (looks.map_or_else(|| NONE.to_string(), |looks| looks.hex()), first.escaped());
            let _ = write!(out, "{offset} {length} {count} {files} {links} {bytes} ");
            let _ = writeln!(out, "{raw} {plain} {portable} {looks} {first}");
        }
        close(&mut out, self.lines.len());
        out
    }
}

fn last_line(text: &[u8]) -> &[u8] {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    &text[memchr::memrchr(b'\n', text).map_or(0, |at| at + 1)..]
}

/// The chunks of a file by its index, and the digest of the file's last line, which tells it from every other; `None` where
/// the index is not of this file.
#[must_use]
pub fn open(path: &Path, index: &Path, style: Style) -> Option<(Vec<Arc<Chunk>>, Hash)> {
    let text = String::from_utf8(fs::read_if_there(index).ok()??).ok()?;
    let mut lines = opened(&text).ok()?.lines();
    let (size, last) = lines.next()?.strip_prefix(FIRST_WORDS)?.split_once(' ')?;
    let (size, last): (u64, Hash) = (size.parse().ok()?, last.parse().ok()?);
    let file = fs::open_read(path).ok()?;
    if file.metadata().ok()?.len() != size || Hash::of(last_line(&tail(&file, size)?)) != last {
        return None;
    }
    let source = Source::new(file, style);
    let chunks: Option<Vec<_>> = lines.map(|line| Some(Chunk::kept(&source, parse(line, size)?))).collect();
    Some((chunks?, last))
}

fn tail(file: &File, size: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(size.min(LAST_LINE)).ok()?];
    let from = size - bytes.len() as u64;
    file.read_exact_at(&mut bytes, from).ok()?;
    Some(bytes)
}

fn parse(line: &str, size: u64) -> Option<Lines> {
    let mut words = line.split(' ');
    let offset: u64 = words.next()?.parse().ok()?;
    let length: usize = words.next()?.parse().ok()?;
    let mut number = || words.next()?.parse::<usize>().ok();
    let (count, files, links) = (number()?, number()?, number()?);
    let bytes = words.next()?.parse().ok()?;
    let mut digest = || words.next()?.parse().ok();
    let (raw, plain, portable) = (digest()?, digest()?, digest()?);
    let looks = words.next()?;
    let looks = if looks == NONE { None } else { Some(looks.parse().ok()?) };
    let first = TreePath::from_escaped(words.next()?).ok()?;
    let is_inside = offset.checked_add(length as u64).is_some_and(|end| end <= size);
    (is_inside && count > 0).then_some(Lines {
        first,
        offset,
        length,
        count,
        files,
        links,
        bytes,
        raw,
        plain,
        portable,
        looks,
    })
}
