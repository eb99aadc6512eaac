//! The logs of services as files: the lines of several instances, each in several files, as one stream in time order.
//!
//! Within an instance the order is that of the file, whatever a clock that jumped wrote there.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::backend::{LogLine, LogQuery};
use super::definition::Instance;
use super::supervisor::output::{FILES, log_file};
use crate::sys::error::Result;
use crate::sys::fs;
use crate::sys::lines::{LineReader, last_lines};

/// Between two looks at files that are followed.
const LOOK: Duration = Duration::from_millis(250);

/// The lines of one instance.
struct Source {
    instance: Instance,
    current: PathBuf,
    /// Lines that were read already.
    ready: VecDeque<LogLine>,
    /// Older files that are still to be read, oldest first.
    files: VecDeque<PathBuf>,
    reader: Option<LineReader>,
    inode: Option<u64>,
    latest: Timestamp,
}

/// Hands lines to `each`, oldest first, until there are no more or it says no.
///
/// # Errors
/// If the logs cannot be read.
pub fn read(logs: &Path, query: &LogQuery, each: &mut dyn FnMut(&LogLine) -> bool) -> Result<()> {
    let mut sources = sources(logs, query)?;
    let is_wanted = |line: &LogLine| query.since.is_none_or(|since| line.at >= since);
    if let Some(last) = query.last {
        let mut all = VecDeque::new();
        while let Some(line) = next(&mut sources)? {
            if is_wanted(&line) {
                all.push_back(line);
            }
            if all.len() > last {
                all.pop_front();
            }
        }
        if !all.iter().all(&mut *each) {
            return Ok(());
        }
    }
    loop {
        while let Some(line) = next(&mut sources)? {
            if is_wanted(&line) && !each(&line) {
                return Ok(());
            }
        }
        if !query.follow {
            return Ok(());
        }
        std::thread::sleep(LOOK);
        let known: Vec<Instance> = sources.iter().map(|source| source.instance.clone()).collect();
        for instance in instances(logs, query)?.into_iter().filter(|instance| !known.contains(instance)) {
            sources.push(Source::new(logs, instance));
        }
        for source in &mut sources {
            source.look_again()?;
        }
    }
}

/// The instances that have logs.
fn instances(logs: &Path, query: &LogQuery) -> Result<Vec<Instance>> {
    let of_name = |name: &String| {
        let (service, number) = name.strip_suffix(".log")?.split_once('@')?;
        Some(Instance { service: service.parse().ok()?, number: number.parse().ok()? })
    };
    let all = fs::names(logs)?;
    let is_wanted = |instance: &Instance| query.service.as_ref().is_none_or(|service| *service == instance.service);
    Ok(all.iter().filter_map(of_name).filter(is_wanted).collect())
}

fn sources(logs: &Path, query: &LogQuery) -> Result<Vec<Source>> {
    let mut all = Vec::new();
    for instance in instances(logs, query)? {
        let mut source = Source::new(logs, instance);
        match query.last {
            Some(last) => source.begin_at_the_end(logs, last)?,
            None => source.files = (0..FILES).rev().map(|age| log_file(logs, &source.instance, age)).collect(),
        }
        all.push(source);
    }
    Ok(all)
}

/// The oldest of the next lines of all sources.
fn next(sources: &mut [Source]) -> Result<Option<LogLine>> {
    for source in &mut *sources {
        source.fill()?;
    }
    let first = |source: &Source| source.ready.front().map(|line| line.at);
    let oldest = sources.iter_mut().filter(|source| !source.ready.is_empty()).min_by_key(|source| first(source));
    Ok(oldest.and_then(|source| source.ready.pop_front()))
}

impl Source {
    fn new(logs: &Path, instance: Instance) -> Self {
        let current = log_file(logs, &instance, 0);
        Self {
            files: [current.clone()].into(),
            instance,
            current,
            ready: VecDeque::new(),
            reader: None,
            inode: None,
            latest: Timestamp::MIN,
        }
    }

    /// Reads the last lines of the newest files, as many as are needed, and goes on behind them.
    fn begin_at_the_end(&mut self, logs: &Path, last: usize) -> Result<()> {
        let size = fs::size_of(&self.current)?;
        let mut found: Vec<Vec<u8>> = Vec::new();
        for age in 0..FILES {
            let older = last_lines(&log_file(logs, &self.instance, age), last - found.len())?;
            found.splice(0..0, older.unwrap_or_default());
            if found.len() >= last {
                break;
            }
        }
        for line in &found {
            self.take(line);
        }
        self.files.clear();
        self.open(&self.current.clone())?;
        if let Some(reader) = &mut self.reader {
            reader.skip_to(size)?;
        }
        Ok(())
    }

    fn open(&mut self, path: &Path) -> Result<()> {
        self.inode = inode_of(path)?;
        self.reader = LineReader::open(path)?;
        Ok(())
    }

    /// Makes sure that the next line is there, if there is one.
    fn fill(&mut self) -> Result<()> {
        while self.ready.is_empty() {
            if let Some(line) = self.reader.as_mut().map_or(Ok(None), LineReader::next_line)? {
                self.take(&line);
            } else if let Some(file) = self.files.pop_front() {
                self.open(&file)?;
            } else {
                return Ok(());
            }
        }
        Ok(())
    }

    fn take(&mut self, line: &[u8]) {
        let end = memchr::memchr(b' ', line).unwrap_or(line.len());
        let at = std::str::from_utf8(&line[..end]).ok().and_then(|text| text.parse::<Timestamp>().ok());
        // What has no time was written by somebody else.
        let Some(at) = at else { return };
        self.latest = self.latest.max(at);
        let text = line.get(end + 1..).unwrap_or_default().to_vec();
        self.ready.push_back(LogLine { at: self.latest, instance: self.instance.clone(), text });
    }

    /// The file that is written may be another one by now.
    fn look_again(&mut self) -> Result<()> {
        if inode_of(&self.current)? != self.inode {
            self.fill()?;
            self.files.push_back(self.current.clone());
        }
        Ok(())
    }
}

fn inode_of(path: &Path) -> Result<Option<u64>> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::examine(path)?.map(|meta| meta.ino()))
}
