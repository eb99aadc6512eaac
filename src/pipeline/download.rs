//! Brings a deliverable from another node over ssh, as if that node and the line to it were hostile.
//!
//! Asked are, each by one run of the system's ssh: the statement and its signature, the manifest, the archive
//! ([`Wanted`] has the words). Each is bounded before it is taken; a part that was signed by nobody whom we trust is never
//! stored. A connection that is lost is tried again with growing pauses and goes on where it ended; what is refused, lied
//! about or not understood is not tried again. Nothing but `releases/` is written.

use std::ffi::OsStr;
use std::io::Write;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::site::Site;
use crate::project::ids::{DeploymentId, ObjectId};
use crate::project::node::RemoteSource;
use crate::project::wanted::{HEADER_LIMIT, Head, Part, Wanted};
use crate::sys::error::{Context, Error, Kind, Result};
use crate::sys::escape::{visible, visible_bounded};
use crate::sys::lock::Lock;
use crate::sys::process::{Bounds, StepStatus, Streamed, Tick, run_streamed};
use crate::sys::ssh_identity::{self, SshIdentity};
use crate::sys::{fault, fs, size, sync};
use crate::tree::deliverable::{Deliverable, LARGEST_SIGNATURE, LARGEST_STATEMENT, Limits};
use crate::tree::incoming::{Announced, Incoming};

/// How often a connection is tried that brings nothing.
const TRIES: u32 = 5;
/// The pause before the second try; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// What a try must bring to count as one that brought something: a line that drips is as good as lost.
const PROGRESS: u64 = 64 * 1024;
/// How long the other side may send nothing.
const SILENT: Duration = Duration::from_secs(45);
/// The longest list of releases that is read, in bytes.
const LARGEST_LIST: usize = 8 << 20;
/// How often the pusher is told how far it is.
const TOLD: Duration = Duration::from_secs(5);

/// Takes lines for whoever waits.
pub type Tell<'a> = &'a mut dyn FnMut(String);

/// How large a part may be.
#[derive(Debug, Clone, Copy)]
enum Size {
    AtMost(u64),
    Exactly(u64),
}

/// What is read of the other node's `release list --json`.
#[derive(Deserialize)]
struct OtherList {
    kept: Vec<OtherRelease>,
    live: Option<DeploymentId>,
}

#[derive(Deserialize)]
struct OtherRelease {
    id: DeploymentId,
    commit: ObjectId,
}

/// Why one try brought no whole part.
enum Trouble {
    /// The connection: to be tried again.
    Lost(String),
    /// Anything else: it would be the same again.
    Final(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// The way to one other node, until a deadline.
pub struct Download<'a> {
    site: &'a Site,
    source: &'a RemoteSource,
    identity: SshIdentity,
    until: Instant,
    tell: Tell<'a>,
}

/// The key with which this node asks others, and whom it knows.
#[must_use]
pub fn identity(site: &Site) -> SshIdentity {
    SshIdentity::new(&site.place.node().keys())
}

impl<'a> Download<'a> {
    /// The way to this source; makes the node's key if there is none.
    ///
    /// # Errors
    /// If there is no ssh, or the key cannot be made.
    pub fn new(site: &'a Site, source: &'a RemoteSource, within: Duration, tell: Tell<'a>) -> Result<Self> {
        let identity = identity(site);
        identity.ensure()?;
        Ok(Self { site, source, identity, until: Instant::now() + within, tell })
    }

    /// The commit that serves on the other node; `None` if nothing does.
    ///
    /// # Errors
    /// If it cannot be asked, or what it says is not understood.
    pub fn serving(&mut self) -> Result<Option<ObjectId>> {
        let words = ["release", "list", self.source.project.as_str(), "--json"].map(str::to_string);
        let args = self.identity.arguments(&self.source.destination(), self.source.port, &words);
        let bounds = Bounds { silent: SILENT, until: self.until };
        let mut text = Vec::new();
        let ended = run_streamed(OsStr::new("ssh"), &args, &self.identity.environment(), bounds, &mut |bytes| {
            text.extend_from_slice(bytes);
            if text.len() > LARGEST_LIST { Tick::Cancel } else { Tick::GoOn }
        })?;
        if ended.status == StepStatus::Cancelled {
            return Err(Error::refused(format!("{}: its list has no end", self.source)));
        }
        if ended.status != StepStatus::Ok {
            return Err(match self.trouble(&ended, false) {
                Trouble::Final(error) => error,
                Trouble::Lost(why) => Error::failed(format!("cannot ask {}: {why}", self.source)),
            });
        }
        let list: OtherList =
            serde_json::from_slice(&text).context(|| format!("cannot understand the list of {}", self.source))?;
        Ok(list.kept.into_iter().find(|kept| Some(&kept.id) == list.live.as_ref()).map(|kept| kept.commit))
    }

    /// Everything of a commit's deliverable but the archive, checked; `None` if the other node has none.
    ///
    /// # Errors
    /// If it cannot be asked, or what it says is refused.
    pub fn look(&mut self, commit: &ObjectId) -> Result<Option<Incoming>> {
        let project = self.site.place.name();
        let deliverable = Deliverable::new(&self.site.place.releases(), project, commit);
        let Some(json) = self.small(commit, Part::Statement, LARGEST_STATEMENT)? else { return Ok(None) };
        let signature = self.small(commit, Part::Signature, LARGEST_SIGNATURE)?.unwrap_or_default();
        let limits = &self.site.node.config.limits;
        let entries = usize::try_from(limits.files.saturating_mul(2)).unwrap_or(usize::MAX);
        let limits = Limits { entries, bytes: limits.bytes };
        let keys = self.site.trusted_keys()?;
        let announced =
            Announced::check(deliverable, json, signature, &keys, limits).map_err(|e| self.told_from_there(&e))?;
        let text = self.small(commit, Part::Manifest, announced.largest_manifest())?.unwrap_or_default();
        announced.with_manifest(text).map(Some).map_err(|e| self.told_from_there(&e))
    }

    /// Brings the archive, or what is missing of it, and puts the deliverable in its place.
    ///
    /// # Errors
    /// If it does not come in time, or is not what was signed; then only the part that came is left.
    pub fn bring(&mut self, incoming: &Incoming) -> Result<()> {
        let lock = self.site.place.state().join("fetch.lock");
        let _one_at_a_time = Lock::take(&lock, Some(self.until), |_| Ok(()))?;
        if incoming.deliverable().exists() {
            return Ok(());
        }
        self.sweep(incoming)?;
        let (name, whole) = (incoming.deliverable().name().to_string(), incoming.statement().size);
        let mut resumed = incoming.held()?;
        loop {
            let rest = match resumed {
                0 => String::new(),
                held => format!(", {} of it are here already", size::words(held)),
            };
            (self.tell)(format!("fetching {name} from {}: {}{rest}", self.source, size::words(whole)));
            self.archive(incoming, resumed)?;
            if incoming.is_whole()? {
                break;
            }
            incoming.forget()?;
            if resumed == 0 {
                return Err(Error::refused(format!("the archive of {name} from {} is not the one that was signed", self.source))
                    .hint("nothing of it was kept; mc_project release verify NAME on that node tells whether it is damaged there"));
            }
            // What was here may have been of another one: it may have been packed anew.
            (self.tell)(format!("what was here of {name} does not fit: once more from its beginning"));
            resumed = 0;
        }
        fault::point("fetch.downloaded")?;
        incoming.settle().map(|_| ())
    }

    /// What came of others and was never finished is of no use any more.
    fn sweep(&self, but: &Incoming) -> Result<()> {
        let releases = self.site.place.releases();
        let parts = fs::names(&releases)?.into_iter().filter(|name| name.ends_with(".tar.zst.part"));
        let others = parts.map(|name| releases.join(name)).filter(|path| *path != but.part());
        others.into_iter().try_for_each(|path| fs::remove_file(&path))
    }

    fn archive(&mut self, incoming: &Incoming, held: u64) -> Result<()> {
        let whole = incoming.statement().size;
        if held == whole {
            return Ok(());
        }
        let mut file = incoming.open()?;
        let doing = || format!("cannot write {}", incoming.part().display());
        let mut take = |bytes: &[u8]| file.write_all(bytes).context(doing);
        let commit = incoming.statement().commit.clone();
        let came = self.part(&commit, Part::Archive, Size::Exactly(whole), held, &mut take);
        match came {
            Ok(Some(_)) => sync::whole(&file).context(doing),
            Ok(None) => Err(Error::failed(format!("{} has the deliverable no longer", self.source))),
            Err(error) => {
                // What comes from a liar is not worth keeping.
                if error.kind() == Kind::Refused {
                    incoming.forget()?;
                }
                Err(error)
            }
        }
    }

    fn small(&mut self, commit: &ObjectId, part: Part, at_most: u64) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let mut take = |piece: &[u8]| {
            bytes.extend_from_slice(piece);
            Ok(())
        };
        let size = self.part(commit, part, Size::AtMost(at_most), 0, &mut take)?;
        Ok(size.map(|_| bytes))
    }

    /// A part from an offset on, in as many tries as it takes; its whole size, `None` if there is none.
    fn part(
        &mut self,
        commit: &ObjectId,
        part: Part,
        size: Size,
        held: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Option<u64>> {
        let mut wanted = Wanted { project: self.source.project.clone(), commit: commit.clone(), part, offset: held };
        let (mut tries, mut pause) = (0, PAUSE);
        loop {
            let before = wanted.offset;
            let why = match self.attempt(&mut wanted, size, take) {
                Ok(size) => return Ok(size),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Lost(why)) => why,
            };
            if wanted.offset - before >= PROGRESS {
                (tries, pause) = (0, PAUSE);
            }
            tries += 1;
            if tries >= TRIES || Instant::now() + pause >= self.until {
                let kept = match wanted.offset {
                    0 => String::new(),
                    held => format!("; {} have come and are kept", size::words(held)),
                };
                return Err(Error::failed(format!("cannot fetch from {}: {why}{kept}", self.source)).hint(format!(
                    "once that node can be reached, push again, or: mc_project release fetch {} {commit}",
                    self.source.project
                )));
            }
            (self.tell)(format!("{}: {why}; trying again in {:.1} s", self.source, pause.as_secs_f32()));
            std::thread::sleep(pause);
            pause *= 2;
        }
    }

    /// One run of ssh. What came is taken, and the offset moved, whatever becomes of it.
    fn attempt(
        &mut self,
        wanted: &mut Wanted,
        size: Size,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> std::result::Result<Option<u64>, Trouble> {
        let args = self.identity.arguments(&self.source.destination(), self.source.port, &wanted.words());
        let bounds = Bounds { silent: SILENT, until: self.until };
        let mut answer = Answer { line: Vec::new(), head: None, bound: size, wanted, told: Instant::now() };
        let mut refused = None;
        let (tell, name) = (&mut *self.tell, self.source.to_string());
        let ended =
            run_streamed(OsStr::new("ssh"), &args, &self.identity.environment(), bounds, &mut |bytes| match answer
                .feed(bytes, take, &mut *tell)
            {
                Ok(()) => Tick::GoOn,
                Err(error) => {
                    refused = Some(error);
                    Tick::Cancel
                }
            })?;
        let (head, offset) = (answer.head, answer.wanted.offset);
        if let Some(error) = refused {
            return Err(Trouble::Final(
                Error::refused(format!("{name}: {}", error.one_line()))
                    .hint(error.hint_text().unwrap_or("nothing was changed; look who answers there").to_string()),
            ));
        }
        match head {
            Some(Head::Bytes(whole)) if whole == offset => Ok(Some(whole)),
            Some(Head::Missing) if ended.status == StepStatus::Ok => Ok(None),
            begun => Err(self.trouble(&ended, begun.is_some())),
        }
    }

    /// What an end of ssh before its time means.
    fn trouble(&self, ended: &Streamed, has_begun: bool) -> Trouble {
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        let words = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim();
        let words = visible_bounded(words.as_bytes(), 300);
        let node = self.source.node();
        match &ended.status {
            StepStatus::CouldNotStart(_) => Trouble::Final(ssh_identity::missing("ssh")),
            StepStatus::Timeout if Instant::now() >= self.until => Trouble::Final(
                Error::failed(format!("{} took too long", self.source))
                    .hint("`fetch_within:` in node.yaml says how long it may"),
            ),
            StepStatus::Timeout => Trouble::Lost(format!("nothing came for {} s", SILENT.as_secs())),
            StepStatus::Exit(255) if text.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") => Trouble::Final(
                Error::refused(format!(
                    "{node} has another ssh key than the one that is known: it may be another machine"
                ))
                .hint(format!("if it is right that it changed: {} keys host {node}", self.site.command())),
            ),
            StepStatus::Exit(255) if text.contains("Host key verification failed") => Trouble::Final(
                Error::refused(format!("the ssh key of {node} is not known here"))
                    .hint(format!("to look at it and accept it: {} keys host {node}", self.site.command())),
            ),
            StepStatus::Exit(255) if text.contains("Permission denied") => Trouble::Final(
                Error::refused(format!("{} does not let this node in", self.source)).hint(self.how_to_be_let_in()),
            ),
            // ssh itself, or the line.
            StepStatus::Exit(255) | StepStatus::Signal(_) => {
                Trouble::Lost(if words.is_empty() { "the connection was lost".to_string() } else { words })
            }
            _ if has_begun => Trouble::Lost("the connection was lost".to_string()),
            other => Trouble::Final(Error::refused(format!(
                "{} refuses: {}",
                self.source,
                if words.is_empty() { other.words() } else { words }
            ))),
        }
    }

    fn how_to_be_let_in(&self) -> String {
        let (key, project) = (self.identity.ensure().unwrap_or_default(), &self.source.project);
        format!(
            "on {}, as root, with the key of this node in a file:\n    mc_project keys add NODE-NAME --project {project} --role read --key FILE\n    {}",
            self.source.host,
            visible(&key)
        )
    }

    fn told_from_there(&self, error: &Error) -> Error {
        let hint = error.hint_text().map(str::to_string);
        let refused = Error::refused(format!("{}: {}", self.source, error.one_line()));
        match hint {
            Some(hint) => refused.hint(hint),
            None => refused,
        }
    }
}

/// What comes out of ssh, as it comes.
struct Answer<'w> {
    line: Vec<u8>,
    head: Option<Head>,
    bound: Size,
    wanted: &'w mut Wanted,
    told: Instant,
}

impl Answer<'_> {
    fn feed(&mut self, bytes: &[u8], take: &mut dyn FnMut(&[u8]) -> Result<()>, tell: Tell<'_>) -> Result<()> {
        let mut rest = bytes;
        if self.head.is_none() {
            let end = memchr::memchr(b'\n', rest);
            self.line.extend_from_slice(&rest[..end.unwrap_or(rest.len()).min(HEADER_LIMIT)]);
            let Some(end) = end.filter(|_| self.line.len() < HEADER_LIMIT) else {
                return if self.line.len() < HEADER_LIMIT { Ok(()) } else { Err(self.not_ours()) };
            };
            rest = &rest[end + 1..];
            self.head = Some(Head::parse(&self.line).ok_or_else(|| self.not_ours())?);
            self.check_size()?;
        }
        let whole = match self.head {
            Some(Head::Bytes(size)) => size,
            _ => self.wanted.offset,
        };
        if rest.len() as u64 > whole.saturating_sub(self.wanted.offset) {
            return Err(Error::refused("it sends more than it announced"));
        }
        take(rest)?;
        self.wanted.offset += rest.len() as u64;
        if self.told.elapsed() >= TOLD {
            self.told = Instant::now();
            let percent = self.wanted.offset.saturating_mul(100) / whole.max(1);
            tell(format!("{} of {} ({percent} %)", size::words(self.wanted.offset), size::words(whole)));
        }
        Ok(())
    }

    fn check_size(&self) -> Result<()> {
        let Some(Head::Bytes(size)) = self.head else { return Ok(()) };
        let ending = self.wanted.part.ending();
        match self.bound {
            Size::Exactly(signed) if size != signed => {
                Err(Error::refused(format!("it announces {size} bytes of {ending}, signed are {signed}")))
            }
            Size::AtMost(most) if size > most => Err(Error::refused(format!(
                "it announces {} of {ending}, at most {} are taken",
                size::words(size),
                size::words(most)
            ))),
            _ if size < self.wanted.offset => {
                Err(Error::refused(format!("it announces {size} bytes of {ending}, more have come already")))
            }
            _ => Ok(()),
        }
    }

    fn not_ours(&self) -> Error {
        let shown = visible_bounded(&self.line, 60);
        Error::refused(format!("what answers is no mc_project: `{shown}`"))
            .hint("the key there must be a forced command of mc_project, and nothing may print before it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one answer comes to: what was taken, and the error.
    fn feed(bound: Size, offset: u64, pieces: &[&[u8]]) -> (Vec<u8>, Option<String>) {
        let commit = "1a2b3c4d5e000000000000000000000000000000".parse().unwrap();
        let mut wanted = Wanted { project: "shop".parse().unwrap(), commit, part: Part::Archive, offset };
        let mut answer = Answer { line: Vec::new(), head: None, bound, wanted: &mut wanted, told: Instant::now() };
        let mut taken = Vec::new();
        for piece in pieces {
            let mut take = |bytes: &[u8]| {
                taken.extend_from_slice(bytes);
                Ok(())
            };
            if let Err(error) = answer.feed(piece, &mut take, &mut |_| {}) {
                return (taken, Some(error.one_line()));
            }
        }
        assert_eq!(wanted.offset, offset + taken.len() as u64);
        (taken, None)
    }

    #[test]
    fn an_answer_is_taken_in_any_pieces() {
        let whole = b"mc_project release 1 5\nhello";
        for cut in 0..=whole.len() {
            let (head, tail) = whole.split_at(cut);
            assert_eq!(feed(Size::Exactly(5), 0, &[head, tail]), (b"hello".to_vec(), None), "{cut}");
        }
        assert_eq!(feed(Size::AtMost(9), 3, &[b"mc_project release 1 5\n", b"lo"]), (b"lo".to_vec(), None));
        assert_eq!(feed(Size::AtMost(9), 0, &[b"mc_project release 1 none\n"]), (vec![], None));
    }

    #[test]
    fn who_waits_is_told_how_far_it_is() {
        let commit = "1a2b3c4d5e000000000000000000000000000000".parse().unwrap();
        let mut wanted = Wanted { project: "shop".parse().unwrap(), commit, part: Part::Archive, offset: 1024 };
        let told = Instant::now().checked_sub(TOLD).unwrap();
        let mut answer = Answer { line: Vec::new(), head: None, bound: Size::Exactly(8192), wanted: &mut wanted, told };
        let mut lines = Vec::new();
        let piece = [b"mc_project release 1 8192\n".to_vec(), vec![0; 1024]].concat();
        answer.feed(&piece, &mut |_| Ok(()), &mut |line| lines.push(line)).unwrap();
        answer.feed(&[0; 1024], &mut |_| Ok(()), &mut |line| lines.push(line)).unwrap();
        assert_eq!(lines, ["2 KiB of 8 KiB (25 %)"], "once in a while, not for each piece");
    }

    #[test]
    fn lies_about_the_size_and_what_is_no_answer_are_refused_before_anything_is_taken() {
        for (bound, offset, piece, why) in [
            (Size::Exactly(5), 0, &b"mc_project release 1 6\nhello!"[..], "signed are 5"),
            (Size::AtMost(5), 0, b"mc_project release 1 6\nhello!", "at most 5 bytes"),
            (Size::AtMost(9), 6, b"mc_project release 1 5\n", "more have come already"),
            (Size::Exactly(5), 0, b"mc_project release 1 5\nhello!", "more than it announced"),
            (Size::Exactly(5), 3, b"mc_project release 1 5\nhello", "more than it announced"),
            (Size::AtMost(5), 0, b"mc_project release 1 none\nx", "more than it announced"),
            (Size::AtMost(5), 0, b"Welcome to Debian!\n", "no mc_project: `Welcome to Debian!`"),
            (Size::AtMost(5), 0, &[b'x'; 5000], "no mc_project"),
            (Size::AtMost(5), 0, b"mc_project release 1 -1\n", "no mc_project"),
        ] {
            let (taken, error) = feed(bound, offset, &[piece]);
            let error = error.unwrap_or_else(|| panic!("{why}"));
            assert!(taken.is_empty() && error.contains(why), "{error}");
        }
        let endless: Vec<&[u8]> = std::iter::repeat_n(&b"x"[..], 100).collect();
        assert!(feed(Size::AtMost(5), 0, &endless).1.is_some());
    }
}
