//! Files of lines that only grow: journals, history, events, logs.
//!
//! A write that fails (a full disk) is taken back, so that no torn line is left in front of the next one. A sync that
//! fails is final: what the kernel could not write it has dropped, and nothing that we could append would be safe.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::{Context, Error, Result};
use super::fs::sync_dir;

const BLOCK: u64 = 64 * 1024;

/// The longest line that a [`LineReader`] gives back; longer ones are skipped.
pub const MAX_LINE: usize = 8 * 1024 * 1024;

/// A file of lines, open for appending.
#[derive(Debug)]
pub struct LineFile {
    file: File,
    path: PathBuf,
    len: u64,
    broken: bool,
}

impl LineFile {
    /// Makes a new file with this mode and makes its name durable.
    ///
    /// # Errors
    /// If something stands there already or it cannot be made.
    pub fn create(path: &Path, mode: u32) -> Result<Self> {
        let new = Self::create_unsynced(path, mode)?;
        match path.parent() {
            Some(dir) => sync_dir(dir)?,
            None => return Err(Error::bug(format!("{} has no parent directory", path.display()))),
        }
        Ok(new)
    }

    /// Makes a new file with this mode; its name is durable when the caller has synced the directory.
    ///
    /// # Errors
    /// As [`LineFile::create`].
    pub fn create_unsynced(path: &Path, mode: u32) -> Result<Self> {
        let new = Self::open_with(path, OpenOptions::new().create_new(true), mode)?;
        // The umask must not decide who may read the file.
        new.file
            .set_permissions(Permissions::from_mode(mode))
            .context(|| format!("cannot set the mode of {}", new.path.display()))?;
        Ok(new)
    }

    /// Opens a file for appending; makes it with this mode, durably by name, if there is none.
    ///
    /// # Errors
    /// If it cannot be opened or made, or is no regular file.
    pub fn open(path: &Path, mode: u32) -> Result<Self> {
        match Self::open_with(path, &mut OpenOptions::new(), mode) {
            Err(error) if error.is_not_found() => Self::create(path, mode),
            opened => opened,
        }
    }

    /// As [`LineFile::open`], for a file that a power cut may take.
    ///
    /// # Errors
    /// As [`LineFile::open`].
    pub fn open_unsynced(path: &Path, mode: u32) -> Result<Self> {
        match Self::open_with(path, &mut OpenOptions::new(), mode) {
            Err(error) if error.is_not_found() => Self::create_unsynced(path, mode),
            opened => opened,
        }
    }

    fn open_with(path: &Path, options: &mut OpenOptions, mode: u32) -> Result<Self> {
        let file = options
            .read(true)
            .append(true)
            .mode(mode)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path)
            .context(|| format!("cannot open {}", path.display()))?;
        let meta = file.metadata().context(|| format!("cannot examine {}", path.display()))?;
        if !meta.is_file() {
            return Err(Error::failed(format!("{} is no regular file", path.display())));
        }
        Ok(Self { file, path: path.to_path_buf(), len: meta.len(), broken: false })
    }

    /// The length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reserves space behind the end, so that the next lines can be written when the disk is full.
    ///
    /// # Errors
    /// If there is no space; a file system that cannot reserve is no error.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        use rustix::io::Errno;
        match rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::KEEP_SIZE, self.len, bytes) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            Err(error) => Err(std::io::Error::from(error))
                .context(|| format!("cannot reserve {bytes} bytes for {}", self.path.display())),
        }
    }

    /// Appends whole lines; either all of them stand there afterwards or none.
    ///
    /// # Errors
    /// If they cannot be written. Only if they cannot be taken back either is the file closed for good.
    pub fn append(&mut self, lines: &[u8]) -> Result<()> {
        self.usable()?;
        if let Err(error) = self.file.write_all(lines) {
            if let Err(second) = self.file.set_len(self.len) {
                self.broken = true;
                return Err(
                    Error::failed(format!("cannot append to {} ({error})", self.path.display())).because(second)
                );
            }
            return Err(error).context(|| format!("cannot append to {}", self.path.display()));
        }
        self.len += lines.len() as u64;
        Ok(())
    }

    /// Waits until everything that was appended is on disk.
    ///
    /// # Errors
    /// A failed sync is final: all later appends and syncs fail too.
    pub fn sync(&mut self) -> Result<()> {
        self.usable()?;
        super::sync::content(&self.file)
            .inspect_err(|_| self.broken = true)
            .context(|| format!("cannot sync {}", self.path.display()))
    }

    /// As [`LineFile::sync`], and makes the names in these directories durable.
    ///
    /// # Errors
    /// As [`LineFile::sync`].
    pub fn sync_with(&mut self, dirs: &[PathBuf]) -> Result<()> {
        self.sync()?;
        dirs.iter().try_for_each(|dir| sync_dir(dir)).inspect_err(|_| self.broken = true)
    }

    fn usable(&self) -> Result<()> {
        if self.broken {
            return Err(Error::failed(format!("{} is closed since a write of it failed", self.path.display()))
                .hint("look for disk errors: dmesg"));
        }
        Ok(())
    }

    /// Cuts the file to `len` bytes.
    ///
    /// # Errors
    /// As ftruncate(2).
    pub fn cut(&mut self, len: u64) -> Result<()> {
        self.usable()?;
        self.file.set_len(len).context(|| format!("cannot cut {}", self.path.display()))?;
        self.len = len;
        Ok(())
    }

    /// Cuts a last line that a crash left without its end.
    ///
    /// # Errors
    /// If the file cannot be read or cut.
    pub fn cut_torn_tail(&mut self) -> Result<()> {
        let whole = whole_len(&self.file, self.len).context(|| format!("cannot read {}", self.path.display()))?;
        if whole == self.len { Ok(()) } else { self.cut(whole) }
    }

    /// Ends a last line that a killed writer left without its end.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn end_torn_line(&mut self) -> Result<()> {
        let mut last = [b'\n'];
        if self.len > 0 {
            self.file
                .read_exact_at(&mut last, self.len - 1)
                .context(|| format!("cannot read {}", self.path.display()))?;
        }
        if last == [b'\n'] { Ok(()) } else { self.append(b"\n") }
    }
}

/// The length of `file` up to the end of its last whole line.
fn whole_len(file: &File, len: u64) -> std::io::Result<u64> {
    let mut end = len;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let block = block_at(file, start, end)?;
        if let Some(at) = memchr::memrchr(b'\n', &block) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn block_at(file: &File, start: u64, end: u64) -> std::io::Result<Vec<u8>> {
    let mut block = vec![0; usize::try_from(end - start).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut block, start)?;
    Ok(block)
}

/// The last `limit` whole lines of a file, oldest first, without their ends; it is read from the end, and a torn last
/// line is left out. `None` if there is no file.
///
/// # Errors
/// If it cannot be read.
pub fn last_lines(path: &Path, limit: usize) -> Result<Option<Vec<Vec<u8>>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(|| format!("cannot open {}", path.display())),
    };
    let read = || -> std::io::Result<Vec<Vec<u8>>> {
        let whole = whole_len(&file, file.metadata()?.len())?;
        let mut start = whole;
        let mut blocks = Vec::new();
        let mut ends = 0;
        while start > 0 && ends <= limit {
            let from = start.saturating_sub(BLOCK);
            let block = block_at(&file, from, start)?;
            ends += memchr::memchr_iter(b'\n', &block).count();
            blocks.push(block);
            start = from;
        }
        blocks.reverse();
        let bytes = blocks.concat();
        let mut lines: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
        lines.pop();
        Ok(lines.split_off(lines.len().saturating_sub(limit)))
    };
    read().map(Some).context(|| format!("cannot read {}", path.display()))
}

/// Reads a file of lines while somebody else appends to it.
#[derive(Debug)]
pub struct LineReader {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Where the next line begins in the buffer.
    start: usize,
    /// Up to where no end of it was found.
    seen: usize,
    skipping: bool,
}

impl LineReader {
    /// Opens the file at its start; `None` if there is none yet.
    ///
    /// # Errors
    /// If it exists and cannot be opened.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => {
                let (path, buffer) = (path.to_path_buf(), Vec::new());
                Ok(Some(Self { file, path, buffer, start: 0, seen: 0, skipping: false }))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(|| format!("cannot open {}", path.display())),
        }
    }

    /// Goes on at this byte.
    ///
    /// # Errors
    /// If the file cannot be read there.
    pub fn skip_to(&mut self, offset: u64) -> Result<()> {
        (self.start, self.seen) = (0, 0);
        self.buffer.clear();
        let sought = std::io::Seek::seek(&mut self.file, std::io::SeekFrom::Start(offset));
        sought.map(|_| ()).context(|| format!("cannot read {}", self.path.display()))
    }

    /// The next whole line without its end; `None` if there is none at this moment.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[self.seen..]) {
                let end = self.seen + at;
                let line = self.buffer[self.start..end].to_vec();
                (self.start, self.seen) = (end + 1, end + 1);
                if std::mem::take(&mut self.skipping) {
                    continue;
                }
                return Ok(Some(line));
            }
            // What was handed on goes only when more is read: not once for every line.
            self.buffer.drain(..self.start);
            (self.start, self.seen) = (0, self.buffer.len());
            if self.seen > MAX_LINE {
                self.skipping = true;
                self.buffer.clear();
                self.seen = 0;
            }
            let more = (&self.file)
                .take(BLOCK)
                .read_to_end(&mut self.buffer)
                .context(|| format!("cannot read {}", self.path.display()))?;
            if more == 0 {
                return Ok(None);
            }
        }
    }
}

/// For tests: a process that cannot write large files.
#[cfg(test)]
pub mod small_files {
    /// Runs the named test again in a process of its own that cannot write files of more than 100 KiB (a stand-in for a
    /// full disk); true in that process.
    #[track_caller]
    pub fn in_child(test: &str) -> bool {
        if std::env::var_os("MC_TEST_CHILD").is_some() {
            return true;
        }
        let out = std::process::Command::new("/bin/sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" --exact \"$1\""])
            .arg(std::env::current_exe().unwrap())
            .arg(test)
            .env("MC_TEST_CHILD", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&out.stderr));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_tail_is_cut_and_a_torn_line_can_be_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "one\ntwo\nthr").unwrap();
        LineFile::open(&path, 0o600).unwrap().cut_torn_tail().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        std::fs::write(&path, "one\nthr").unwrap();
        let mut file = LineFile::open(&path, 0o600).unwrap();
        file.end_torn_line().unwrap();
        file.append(b"four\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\nthr\nfour\n");
        std::fs::write(&path, "x".repeat(200_000)).unwrap();
        LineFile::open(&path, 0o600).unwrap().cut_torn_tail().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_write_that_fails_half_way_is_taken_back_and_the_next_one_stands_alone() {
        let name = "sys::lines::tests::a_write_that_fails_half_way_is_taken_back_and_the_next_one_stands_alone";
        if !small_files::in_child(name) {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut file = LineFile::create(&path, 0o600).unwrap();
        file.append(b"one\n").unwrap();
        let result = file.append(&vec![b'x'; 200_000]);
        assert!(result.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"one\n");
        file.append(b"two\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn the_last_lines_are_read_from_the_end_without_a_torn_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(last_lines(&path, 3).unwrap().is_none());
        let text: String = (0..20_000).fold(String::new(), |text, n| text + &format!("line {n}\n"));
        std::fs::write(&path, text + "torn").unwrap();
        assert_eq!(last_lines(&path, 2).unwrap().unwrap(), [b"line 19998".to_vec(), b"line 19999".to_vec()]);
        let all = last_lines(&path, usize::MAX).unwrap().unwrap();
        assert_eq!((all.len(), &all[0][..]), (20_000, &b"line 0"[..]));
        assert_eq!(last_lines(&path, 0).unwrap().unwrap().len(), 0);
        std::fs::write(&path, "").unwrap();
        assert_eq!(last_lines(&path, 5).unwrap().unwrap().len(), 0);
    }

    #[test]
    fn a_reader_gives_whole_lines_only_and_skips_monsters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(LineReader::open(&path).unwrap().is_none());
        let mut file = LineFile::create(&path, 0o600).unwrap();
        let mut reader = LineReader::open(&path).unwrap().unwrap();
        assert!(reader.next_line().unwrap().is_none());
        file.append(b"o").unwrap();
        assert!(reader.next_line().unwrap().is_none());
        file.append(b"ne\ntwo\n").unwrap();
        assert_eq!(reader.next_line().unwrap().unwrap(), b"one");
        assert_eq!(reader.next_line().unwrap().unwrap(), b"two");
        file.append(&vec![b'x'; MAX_LINE + 200_000]).unwrap();
        file.append(b"\nafter\n").unwrap();
        assert_eq!(reader.next_line().unwrap().unwrap(), b"after");
        assert!(reader.next_line().unwrap().is_none());
    }
}
