//! A fifo that carries the output of a program from one reader to the next: the program holds it open for reading too, so
//! that it never meets a closed pipe while nobody reads.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::error::{Context, Error, Result};
use super::fs::File;

/// What the kernel is asked to hold while nobody reads; without the right to, it holds less.
const CAPACITY: usize = 1024 * 1024;

/// A fifo, open for reading.
#[derive(Debug)]
pub struct Fifo {
    file: File,
    path: std::path::PathBuf,
}

impl Fifo {
    /// Opens the fifo at `path`; makes it if there is none. It belongs to `owner` then, so that a program of that user can
    /// open its own output again (`/dev/stdout`).
    ///
    /// # Errors
    /// If something else stands there or it cannot be made.
    pub fn open(path: &Path, owner: Option<(u32, u32)>) -> Result<Self> {
        let doing = || format!("cannot open {}", path.display());
        match rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).context(|| format!("cannot make {}", path.display())),
        }
        let file = open(path, OFlags::NONBLOCK).context(doing)?;
        let found = rustix::fs::fstat(&file).context(doing)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Fifo {
            return Err(Error::failed(format!("{} is in the way: it is no fifo", path.display())));
        }
        if let Some((uid, gid)) = owner.filter(|owner| *owner != (found.st_uid, found.st_gid)) {
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            rustix::fs::fchown(&file, Some(uid), Some(gid)).context(doing)?;
        }
        let _ = rustix::pipe::fcntl_setpipe_size(&file, CAPACITY);
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// The end for a program: it blocks when the fifo is full, and holds the fifo open for reading and writing.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn for_program(&self) -> Result<File> {
        open(&self.path, OFlags::empty()).context(|| format!("cannot open {}", self.path.display()))
    }

    /// To be polled: readable when something was written.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The next bytes, without waiting; 0 if there are none now.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        self.file.read(buffer).unwrap_or(0)
    }
}

fn open(path: &Path, more: OFlags) -> rustix::io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_writer_outlives_its_reader_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let mut one = Fifo::open(&path, None).unwrap();
        let mut program = one.for_program().unwrap();
        let mut buffer = [0; 100];
        assert_eq!(one.read(&mut buffer), 0);
        program.write_all(b"a").unwrap();
        assert_eq!(one.read(&mut buffer), 1);
        drop(one);
        program.write_all(b"while nobody reads").unwrap();
        let mut two = Fifo::open(&path, None).unwrap();
        assert_eq!(two.read(&mut buffer), 18);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(Fifo::open(&path, None).is_err());
    }
}
