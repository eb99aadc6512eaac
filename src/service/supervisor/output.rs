//! The output of one instance: from its fifo, line by line, masked and with the time, into a file that is rotated.
//!
//! A file line is `TIME TEXT`. What cannot be written (a full disk) is counted and dropped, never kept: the service must
//! not wait for the disk, and we must not grow.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::service::definition::Instance;
use crate::sys::error::Result;
use crate::sys::fifo::Fifo;
use crate::sys::lines::LineFile;
use crate::sys::mask::Mask;
use crate::sys::process::Lines;
use crate::sys::{clock, fs};

/// When a file is rotated.
const LARGEST: u64 = 10 * 1024 * 1024;
/// How many files an instance has, the one that is written among them.
pub const FILES: usize = 5;
/// The longest line; the rest of a longer one is a line of its own.
const LONGEST: usize = 8 * 1024;
/// How many of the last lines are told when it fails.
const RECENT: usize = 20;
/// How much is read before others have their turn.
const TURN: usize = 256 * 1024;
/// How much is collected before it is written.
const AT_ONCE: usize = 64 * 1024;
/// What our own lines in a log begin with.
pub const OURS: &str = "mc_project: ";

/// The log file of an instance; `age` 0 is the one that is written.
#[must_use]
pub fn log_file(logs: &Path, instance: &Instance, age: usize) -> PathBuf {
    let name = if age == 0 { format!("{instance}.log") } else { format!("{instance}.log.{age}") };
    logs.join(name)
}

/// The output of one instance.
pub struct Output {
    instance: Instance,
    logs: PathBuf,
    fifo: Fifo,
    lines: Lines,
    file: Option<LineFile>,
    lost: u64,
    recent: VecDeque<Vec<u8>>,
    batch: Vec<u8>,
}

impl Output {
    /// Opens the fifo below `dir`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(dir: &Path, logs: &Path, instance: &Instance, owner: Option<(u32, u32)>) -> Result<Self> {
        Ok(Self {
            instance: instance.clone(),
            logs: logs.to_path_buf(),
            fifo: Fifo::open(&fifo_path(dir, instance), owner)?,
            lines: Lines::default(),
            file: None,
            lost: 0,
            recent: VecDeque::new(),
            batch: Vec::new(),
        })
    }

    /// Removes the fifo below `dir`.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(dir: &Path, instance: &Instance) -> Result<()> {
        fs::remove_file(&fifo_path(dir, instance))
    }

    /// The end for the program.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn for_program(&self) -> Result<fs::File> {
        self.fifo.for_program()
    }

    /// To be polled.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }

    /// Takes what was written, for one turn.
    pub fn pump(&mut self, mask: &Mask) {
        let mut buffer = [0_u8; 16 * 1024];
        let mut taken = 0;
        while taken < TURN {
            let n = self.fifo.read(&mut buffer);
            if n == 0 {
                break;
            }
            taken += n;
            let (mut lines, mut found) = (std::mem::take(&mut self.lines), Vec::new());
            lines.feed(&buffer[..n], &mut |line| found.push(line.to_vec()));
            self.lines = lines;
            for line in &found {
                self.take(line, mask);
            }
        }
        self.flush();
    }

    /// Takes everything that was written and ends the last line: nobody writes any more.
    pub fn finish(&mut self, mask: &Mask) {
        self.pump(mask);
        let (mut lines, mut found) = (std::mem::take(&mut self.lines), Vec::new());
        lines.finish(&mut |line| found.push(line.to_vec()));
        self.lines = lines;
        for line in &found {
            self.take(line, mask);
        }
        self.flush();
    }

    /// Writes a line of our own.
    pub fn say(&mut self, words: &str) {
        self.push(format!("{OURS}{words}").as_bytes());
        self.flush();
    }

    /// A new run begins: what the one before wrote is not told for it.
    pub fn begin(&mut self) {
        self.recent.clear();
    }

    /// The last lines of this run, oldest first.
    pub fn recent(&self) -> impl Iterator<Item = &[u8]> {
        self.recent.iter().map(Vec::as_slice)
    }

    fn take(&mut self, line: &[u8], mask: &Mask) {
        let line = mask.line(line);
        for piece in line.chunks(LONGEST) {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(piece.to_vec());
            self.push(piece);
        }
        if line.is_empty() {
            self.push(b"");
        }
    }

    fn push(&mut self, line: &[u8]) {
        self.batch.extend_from_slice(format!("{:.6} ", clock::now()).as_bytes());
        self.batch.extend_from_slice(line);
        self.batch.push(b'\n');
        if self.batch.len() > AT_ONCE {
            self.flush();
        }
    }

    /// Writes what was collected.
    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        let count = memchr::memchr_iter(b'\n', &batch).count() as u64;
        let written = self.write(&batch);
        if written.is_err() {
            self.lost += count;
            self.file = None;
        }
    }

    fn write(&mut self, batch: &[u8]) -> Result<()> {
        let path = log_file(&self.logs, &self.instance, 0);
        if self.file.as_ref().is_some_and(|file| file.size() + batch.len() as u64 > LARGEST) {
            self.file = None;
            self.rotate()?;
        }
        if self.file.is_none() {
            fs::ensure_dir(&self.logs, 0o750)?;
            let mut file = LineFile::open(&path, 0o640)?;
            file.end_torn_line()?;
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        if self.lost > 0 {
            let note = format!("{:.6} {OURS}{} lines were lost: they could not be written\n", clock::now(), self.lost);
            file.append(note.as_bytes())?;
            self.lost = 0;
        }
        file.append(batch)
    }

    fn rotate(&self) -> Result<()> {
        for age in (0..FILES - 1).rev() {
            let from = log_file(&self.logs, &self.instance, age);
            if fs::exists(&from) {
                fs::rename_durable(&from, &log_file(&self.logs, &self.instance, age + 1))?;
            }
        }
        Ok(())
    }
}

fn fifo_path(dir: &Path, instance: &Instance) -> PathBuf {
    dir.join(format!("{instance}.out"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn output(dir: &Path) -> Output {
        let instance = Instance { service: "web".parse().unwrap(), number: 1 };
        Output::open(dir, &dir.join("logs"), &instance, None).unwrap()
    }

    fn texts(dir: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(dir.join("logs/web@1.log")).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_string()).collect()
    }

    #[test]
    fn lines_are_written_with_their_time_masked_and_in_bounded_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = output(dir.path());
        let mut program = output.for_program().unwrap();
        let mask = Mask::new(&["hunter2hunter2".to_string()]);
        program.write_all(b"a\n\npassword hunter2hunter2\nno end").unwrap();
        output.pump(&mask);
        assert_eq!(texts(dir.path()), ["a", "", "password [secret]"]);
        output.finish(&mask);
        program.write_all(&[&[b'x'; LONGEST + 5][..], b"\n"].concat()).unwrap();
        output.pump(&mask);
        let texts = texts(dir.path());
        assert_eq!(texts[3], "no end");
        assert_eq!((texts[4].len(), texts[5].as_str()), (LONGEST, "xxxxx"));
        let line = std::fs::read_to_string(dir.path().join("logs/web@1.log")).unwrap();
        assert!(line.split(' ').next().unwrap().parse::<jiff::Timestamp>().is_ok(), "{line}");
    }

    #[test]
    fn files_are_rotated_and_never_more_than_so_many() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = output(dir.path());
        let line = vec![b'y'; 7000];
        for _ in 0..(LARGEST / 7000 + 5) * (FILES as u64 + 1) {
            output.push(&line);
            output.flush();
        }
        let mut names = crate::sys::fs::names(&dir.path().join("logs")).unwrap();
        names.sort();
        assert_eq!(names, ["web@1.log", "web@1.log.1", "web@1.log.2", "web@1.log.3", "web@1.log.4"]);
        let size = |name: &str| std::fs::metadata(dir.path().join("logs").join(name)).unwrap().len();
        assert!(names.iter().all(|name| size(name) <= LARGEST));
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told_when_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = output(dir.path());
        std::fs::write(dir.path().join("logs"), "in the way").unwrap();
        output.say("one");
        output.say("two");
        std::fs::remove_file(dir.path().join("logs")).unwrap();
        output.say("three");
        let wanted = ["mc_project: 2 lines were lost: they could not be written", "mc_project: three"];
        assert_eq!(texts(dir.path()), wanted);
    }
}
