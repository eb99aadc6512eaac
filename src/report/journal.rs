//! The durable journal of one deployment, `state/journal/<id>.jsonl`: the truth about it.
//!
//! Each line is the JSON of a [`Record`], a tab, the first 16 digits of the JSON's blake3 and a line feed. The first
//! line names the format. An act that changes what runs, or what nobody can make again, begins only after its record is
//! synced; so a last line that is torn or damaged tells of an act that never began, and counts as never written. Any other
//! damaged line is an error: nothing is guessed about what it said.
//!
//! # What is synced when
//!
//! A sync writes down every line before it too, so a line needs none of its own if no such act lies between it and the next
//! one that has. Until the first sync only the candidate and our own working copies change: a power cut that takes the
//! journal with it leaves a spare that the next deployment looks at anyway, and nothing to take back. So:
//! - before a program of a recipe is run, before a service is stopped and before the switch everything said is on disk
//!   ([`Journal::secure`], [`Event::must_be_synced`]);
//! - the switch and the commit follow each other with one sync between the exchange's directories and the record of the
//!   commit, unless something of the new version is run in between: then that is recorded first;
//! - after the commit's record nothing needs a sync until the deployment is closed: recovery does all of it again as long as
//!   `last.json` says that the deployment is open. What it says then is only written when everything before is on disk.
//!
//! A killed process loses nothing of this: what was written is in the kernel's hands.
//!
//! [`Event::must_be_synced`]: super::event::Event::must_be_synced

use std::path::PathBuf;

use serde::Deserialize;

use super::event::Record;
use crate::project::ids::DeploymentId;
use crate::project::place::Place;
use crate::sys::error::{Context, Error, Result};
use crate::sys::fs;
use crate::sys::lines::LineFile;

const FORMAT: u32 = 1;

/// Reserved at the beginning, so that a rollback can still be recorded when the deployment has filled the disk.
const RESERVE: u64 = 64 * 1024;

/// No journal is longer: heartbeats of a whole day are 2 MiB.
const LIMIT: u64 = 256 * 1024 * 1024;

#[derive(Deserialize)]
struct Header {
    mc_project_journal: u32,
}

/// The journal of a deployment, open for writing.
#[derive(Debug)]
pub struct Journal {
    file: LineFile,
    /// Directories whose names must be on disk before anything counts that is written here.
    unsynced: Vec<PathBuf>,
    is_secure: bool,
}

impl Journal {
    /// Makes the journal of a new deployment.
    ///
    /// # Errors
    /// If there is one already or it cannot be made.
    pub fn create(place: &Place, id: &DeploymentId) -> Result<Self> {
        fs::ensure_dir(&place.journals(), 0o700)?;
        let mut file = LineFile::create_unsynced(&place.journal(id), 0o600)?;
        file.reserve(RESERVE)?;
        file.append(&header())?;
        // `state` too: `last.json`, which says that the deployment is open, was put there right before.
        Ok(Self { file, unsynced: vec![place.journals(), place.state()], is_secure: false })
    }

    /// Opens the journal of an interrupted deployment to go on with it; a torn tail is cut first.
    ///
    /// # Errors
    /// As [`read`].
    pub fn open(place: &Place, id: &DeploymentId) -> Result<Self> {
        let path = place.journal(id);
        let (_, good) = parse(&read_bytes(place, id)?, &path.display().to_string())?;
        let mut file = LineFile::open(&path, 0o600)?;
        if file.size() > good {
            file.cut(good)?;
        }
        if good == 0 {
            file.append(&header())?;
        }
        Ok(Self { file, unsynced: vec![place.journals(), place.state()], is_secure: false })
    }

    /// Appends a record, and syncs it where the act that follows must not begin before.
    ///
    /// # Errors
    /// If it cannot be written: it is taken back then, and the journal stays usable (a full disk may have space again
    /// for the next record). A failed sync is final: every later append fails too.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let json = serde_json::to_vec(record).context(|| "cannot write a record of the journal".to_string())?;
        self.is_secure &= !record.event.is_milestone();
        self.file.append(&checked(json))?;
        if record.event.must_be_synced() { self.secure() } else { Ok(()) }
    }

    /// Waits until everything that a recovery goes by is on disk, and that there is a journal.
    ///
    /// # Errors
    /// A failed sync is final.
    pub fn secure(&mut self) -> Result<()> {
        if self.is_secure {
            return Ok(());
        }
        self.file.sync_with(&std::mem::take(&mut self.unsynced))?;
        self.is_secure = true;
        Ok(())
    }
}

/// All records of a deployment's journal.
///
/// # Errors
/// If there is no journal ([`Error::is_not_found`]), if a line that is not the last is damaged (the error names it), or
/// if a newer version wrote it.
pub fn read(place: &Place, id: &DeploymentId) -> Result<Vec<Record>> {
    parse(&read_bytes(place, id)?, &place.journal(id).display().to_string()).map(|(records, _)| records)
}

fn read_bytes(place: &Place, id: &DeploymentId) -> Result<Vec<u8>> {
    let path = place.journal(id);
    fs::read_bounded(&path, LIMIT)?.ok_or_else(|| {
        Error::failed(format!("there is no journal {}", path.display()))
            .because(std::io::Error::from(rustix::io::Errno::NOENT))
    })
}

fn header() -> Vec<u8> {
    checked(format!("{{\"mc_project_journal\":{FORMAT}}}").into_bytes())
}

/// The line of this JSON: with its checksum and its end.
fn checked(json: Vec<u8>) -> Vec<u8> {
    let sum = blake3::hash(&json).to_hex();
    let mut line = json;
    line.push(b'\t');
    line.extend_from_slice(&sum.as_bytes()[..16]);
    line.push(b'\n');
    line
}

/// The JSON of a line, if its checksum is right.
fn unchecked(line: &[u8]) -> Option<&[u8]> {
    let tab = memchr::memrchr(b'\t', line)?;
    let (json, sum) = (&line[..tab], &line[tab + 1..]);
    (blake3::hash(json).to_hex().as_bytes()[..16] == *sum).then_some(json)
}

/// The records in `bytes` and the length up to the end of the last good line; `file` is its name for messages.
///
/// # Errors
/// As [`read`].
pub fn parse(bytes: &[u8], file: &str) -> Result<(Vec<Record>, u64)> {
    let mut records = Vec::new();
    let mut good = 0;
    refuse_newer(bytes, file)?;
    for (index, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        // A tab ends each record's JSON and stands nowhere else: two of them are two lines whose line feed was lost.
        let is_last = good + line.len() == bytes.len() && memchr::memchr_iter(b'\t', line).count() < 2;
        let Some(json) = line.strip_suffix(b"\n").and_then(unchecked) else {
            if is_last {
                break;
            }
            return Err(damaged(file, index + 1));
        };
        if index == 0 {
            serde_json::from_slice::<Header>(json).map_err(|e| damaged(file, 1).because(e))?;
        } else {
            // The checksum is right, so this is no damage but something that we do not understand.
            let record =
                serde_json::from_slice(json).context(|| format!("cannot understand line {} of {file}", index + 1))?;
            records.push(record);
        }
        good += line.len();
    }
    Ok((records, good as u64))
}

/// A newer version may check its lines in another way, so its first line is read before any checksum.
fn refuse_newer(bytes: &[u8], file: &str) -> Result<()> {
    let end = bytes.iter().position(|b| matches!(b, b'\t' | b'\n')).unwrap_or(bytes.len());
    match serde_json::from_slice::<Header>(&bytes[..end]) {
        Ok(header) if header.mc_project_journal > FORMAT => {
            Err(Error::refused(format!("{file} was written by a newer mc_project"))
                .hint("install that version again, or a newer one"))
        }
        _ => Ok(()),
    }
}

fn damaged(file: &str, line: usize) -> Error {
    Error::failed(format!("line {line} of {file} is damaged"))
        .hint("nothing was changed; look for disk errors (dmesg) and bring the file back from a backup of the node")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::event::Event;
    use crate::report::samples;
    use crate::sys::error::Kind;

    fn written(count: u64) -> (tempfile::TempDir, Place, DeploymentId, Vec<Record>) {
        let (dir, place) = samples::place();
        let id = samples::id(1);
        let mut journal = Journal::create(&place, &id).unwrap();
        let mut records = vec![samples::record(0, samples::begin(1))];
        records.extend((1..count).map(|n| samples::record(n, Event::Note { text: format!("note\t{n}\n\u{202e}") })));
        for record in &records {
            journal.append(record).unwrap();
        }
        (dir, place, id, records)
    }

    #[test]
    fn records_read_back_exactly_and_a_second_journal_of_the_same_name_is_refused() {
        let (_dir, place, id, records) = written(5);
        assert_eq!(read(&place, &id).unwrap(), records);
        assert!(Journal::create(&place, &id).is_err());
        let meta = std::fs::metadata(place.journal(&id)).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777, 0o600);
    }

    #[test]
    fn a_journal_cut_anywhere_reads_as_its_whole_lines_and_goes_on_from_there() {
        let (_dir, place, id, records) = written(4);
        let path = place.journal(&id);
        let bytes = std::fs::read(&path).unwrap();
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let lines = memchr::memchr_iter(b'\n', &bytes[..cut]).count();
            let whole = &records[..lines.saturating_sub(1)];
            assert_eq!(read(&place, &id).unwrap(), whole, "cut at {cut}");
            Journal::open(&place, &id).unwrap().append(&records[3]).unwrap();
            let after = read(&place, &id).unwrap();
            assert_eq!((&after[..after.len() - 1], after.last()), (whole, records.last()), "cut at {cut}");
        }
    }

    #[test]
    fn every_flipped_bit_before_the_last_line_is_found_and_the_line_named() {
        let (_dir, place, id, records) = written(3);
        let path = place.journal(&id);
        let bytes = std::fs::read(&path).unwrap();
        let last = bytes[..bytes.len() - 1].iter().rposition(|b| *b == b'\n').unwrap();
        for (at, bit) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            match parse(&bad, "J") {
                Ok((read, _)) => assert!(at > last && read == records[..2], "bit {bit} of byte {at} was not seen"),
                Err(error) => {
                    let newer = at == 22 && error.kind() == Kind::Refused;
                    assert!(newer || error.message().contains(" of J is damaged"), "byte {at}: {error}");
                }
            }
        }
        let mut bad = bytes;
        bad[60] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let error = read(&place, &id).unwrap_err();
        assert_eq!(error.kind(), Kind::Failed);
        assert_eq!(error.message(), format!("line 2 of {} is damaged", path.display()));
        assert!(Journal::open(&place, &id).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), bad, "nothing is changed");
    }

    #[test]
    fn a_newer_version_is_refused_untouched_even_with_an_unknown_line_form() {
        let (_dir, place, id, _) = written(1);
        for text in ["{\"mc_project_journal\":2}\tother\nrest\n", "{\"mc_project_journal\":2}\n"] {
            std::fs::write(place.journal(&id), text).unwrap();
            assert_eq!(read(&place, &id).unwrap_err().kind(), Kind::Refused);
            assert_eq!(Journal::open(&place, &id).unwrap_err().kind(), Kind::Refused);
            assert_eq!(std::fs::read_to_string(place.journal(&id)).unwrap(), text);
        }
    }

    #[test]
    fn a_missing_journal_is_told_as_missing() {
        let (_dir, place) = samples::place();
        assert!(read(&place, &samples::id(9)).unwrap_err().is_not_found());
        assert!(Journal::open(&place, &samples::id(9)).unwrap_err().is_not_found());
    }
}
