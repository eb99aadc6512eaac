//! Reading objects through long-lived `git cat-file` processes, each started when it is first needed.
//!
//! The content is checked against the id here, because git does not do so when it reads.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout};

use ring::digest;

use crate::sys::error::{Context, Error, Result};
use crate::sys::names::ObjectId;

use super::ObjectFormat;
use super::object::{Header, ObjectKind};
use super::program::{Git, kill_group};

/// So many questions go out before an answer is read: they and their answers fit into the smallest pipe (4 KiB), so
/// that neither side waits for the other for ever.
const QUESTIONS: usize = 40;

/// The readers of one repository.
pub struct Batch {
    repo: PathBuf,
    format: ObjectFormat,
    objects: Option<PathBuf>,
    identity: Option<(u32, u32)>,
    headers: Option<Talk>,
    contents: Option<Talk>,
}

/// One running `git cat-file`.
struct Talk {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Batch {
    /// Readers for the repository at `repo`; nothing is started yet. They run as `identity` (user, group), if given.
    pub fn new(repo: &Path, format: ObjectFormat, objects: Option<&Path>, identity: Option<(u32, u32)>) -> Self {
        let objects = objects.map(Path::to_path_buf);
        Self { repo: repo.to_path_buf(), format, objects, identity, headers: None, contents: None }
    }

    /// Kind and size of objects; `None` for those that are not here.
    ///
    /// # Errors
    /// If git cannot be started or breaks off.
    pub fn headers(&mut self, ids: &[&ObjectId]) -> Result<Vec<Option<Header>>> {
        let mut found = Vec::with_capacity(ids.len());
        for some in ids.chunks(QUESTIONS) {
            let talk =
                started(&mut self.headers, (&self.repo, self.objects.as_deref(), self.identity), "--batch-check")?;
            let answers = talk.ask(some);
            found.extend(answers.inspect_err(|_| self.headers = None)?);
        }
        Ok(found)
    }

    /// Writes the content of an object to `out` and tells its size.
    ///
    /// # Errors
    /// If it is missing or cannot be written; if it is damaged, which shows at its end.
    pub fn copy(&mut self, id: &ObjectId, out: &mut dyn Write) -> Result<u64> {
        let talk = started(&mut self.contents, (&self.repo, self.objects.as_deref(), self.identity), "--batch")?;
        // After an error the conversation is out of step and is begun anew.
        talk.copy(id, self.format, out).inspect_err(|_| self.contents = None)
    }
}

/// The repository, one more directory of objects, and whom the reader runs as.
type Where<'a> = (&'a Path, Option<&'a Path>, Option<(u32, u32)>);

fn started<'a>(slot: &'a mut Option<Talk>, repo: Where<'_>, how: &str) -> Result<&'a mut Talk> {
    let talk = match slot.take() {
        Some(talk) => talk,
        None => Talk::start(repo, how)?,
    };
    Ok(slot.insert(talk))
}

impl Talk {
    fn start((repo, objects, identity): Where<'_>, how: &str) -> Result<Self> {
        // From this size on git streams a blob instead of holding it in memory (if it is stored whole).
        let mut child = Git::of(repo)
            .with_objects(objects)
            .identity(identity)
            .setting("core.bigFileThreshold=32m")
            .args(["cat-file", how])
            .converse()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::bug("git was started without pipes"));
        };
        Ok(Self { child, stdin: Some(stdin), stdout: BufReader::new(stdout) })
    }

    fn ask(&mut self, ids: &[&ObjectId]) -> Result<Vec<Option<Header>>> {
        let mut questions = String::new();
        for id in ids {
            questions.push_str(id.as_str());
            questions.push('\n');
        }
        self.stdin
            .as_mut()
            .map_or(Ok(()), |stdin| stdin.write_all(questions.as_bytes()))
            .context(|| "cannot talk to git cat-file".into())?;
        ids.iter().map(|id| self.answer(id)).collect()
    }

    fn answer(&mut self, id: &ObjectId) -> Result<Option<Header>> {
        let mut line = String::new();
        self.stdout.by_ref().take(1024).read_line(&mut line).context(|| "cannot read from git cat-file".into())?;
        let mut words = line.split_whitespace();
        let answer = (words.next(), words.next(), words.next());
        match answer {
            (Some(of), Some("missing"), None) if of == id.as_str() => Ok(None),
            (Some(of), Some(kind), Some(size)) if of == id.as_str() => {
                let kind = ObjectKind::parse(kind);
                let header = kind.zip(size.parse().ok()).map(|(kind, size)| Header { kind, size });
                header.map(Some).ok_or_else(|| broken_off(id))
            }
            _ => Err(broken_off(id)),
        }
    }

    fn copy(&mut self, id: &ObjectId, format: ObjectFormat, out: &mut dyn Write) -> Result<u64> {
        let header = self.ask(&[id])?.pop().flatten();
        let header = header.ok_or_else(|| Error::failed(format!("object {} is missing", id.short())))?;
        let mut hash = digest::Context::new(match format {
            ObjectFormat::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            ObjectFormat::Sha256 => &digest::SHA256,
        });
        hash.update(format!("{} {}\0", header.kind.as_str(), header.size).as_bytes());
        let mut left = header.size;
        while left > 0 {
            let bytes = self.stdout.fill_buf().context(|| format!("cannot read object {}", id.short()))?;
            if bytes.is_empty() {
                return Err(broken_off(id));
            }
            let size = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
            hash.update(&bytes[..size]);
            out.write_all(&bytes[..size]).context(|| format!("cannot write the content of {}", id.short()))?;
            self.stdout.consume(size);
            left -= size as u64;
        }
        let mut end = [0_u8; 1];
        self.stdout.read_exact(&mut end).context(|| format!("cannot read object {}", id.short()))?;
        if hex(hash.finish().as_ref()) != id.as_str() {
            return Err(Error::failed(format!("object {} is damaged: its content has another id", id.short())));
        }
        Ok(header.size)
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // It ends when its input ends; but it may be in the middle of a long answer that nobody reads any more.
        drop(self.stdin.take());
        kill_group(&mut self.child);
    }
}

fn broken_off(id: &ObjectId) -> Error {
    Error::failed(format!("git cat-file broke off at object {}", id.short())).hint("git fsck")
}

/// Bytes as lowercase hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}
