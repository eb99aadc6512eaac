//! Hands a part of a deliverable to another node that asks for it over ssh: read only, one file of `releases/`, nothing else.
//!
//! On a whole-machine node the forced command is the receiver's, who may not read `releases/`: it asks root through the
//! socket ([`of_root`] is its side, [`give`] root's). On a directory node the forced command is `release serve NAME`
//! ([`words_of_ssh`], [`serve_own`]), and does it by itself.

use std::ffi::OsStr;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::door::{self, Answer, Ask, Person};
use super::remote;
use super::shell::words;
use crate::pipeline::site::Site;
use crate::project::ids::ProjectName;
use crate::project::place::NodePlace;
use crate::project::wanted::{Head, Wanted};
use crate::report::ledger::Last;
use crate::sys::error::{Context, Error, Result};
use crate::sys::fs::{self, File};
use crate::sys::lock;
use crate::sys::socket::Channel;
use crate::tree::deliverable::Deliverable;

/// How much is handed on at once.
const PIECE: usize = 64 * 1024;
/// How long whoever asks may take nothing: ssh over a line that stalls is patient, and so are we.
const PATIENCE: Duration = Duration::from_mins(2);

/// How long packing is waited for, and how often it is looked whether it is done.
const PACKING: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(50);

/// A part that is there, opened once: what is announced is what is sent, whatever is packed meanwhile.
struct Opened {
    file: File,
    whole: u64,
}

/// Opens a part at its offset; `None` where there is no such deliverable.
fn open(site: &Site, wanted: &Wanted) -> Result<Option<Opened>> {
    let found = Deliverable::new(&site.place.releases(), site.place.name(), &wanted.commit);
    if !found.exists() && !is_packed_now(site, wanted, &found)? {
        return Ok(None);
    }
    let path = found.file(wanted.part.ending());
    let mut file = fs::open_read(&path)?;
    let doing = || format!("cannot read {}", path.display());
    let whole = file.metadata().context(doing)?.len();
    if wanted.offset > whole {
        return Err(Error::refused(format!("{} has {whole} bytes, fewer than {}", found.name(), wanted.offset)));
    }
    file.seek(SeekFrom::Start(wanted.offset)).context(doing)?;
    Ok(Some(Opened { file, whole }))
}

/// Waits for a deliverable whose deployment is being settled: its pusher was let go before it is packed, and may have gone on to
/// the node that asks. Tells whether it came.
fn is_packed_now(site: &Site, wanted: &Wanted, found: &Deliverable) -> Result<bool> {
    let end = Instant::now() + PACKING;
    while Instant::now() < end && is_settling(site, wanted)? && !found.exists() {
        std::thread::sleep(LOOK);
    }
    Ok(found.exists())
}

fn is_settling(site: &Site, wanted: &Wanted) -> Result<bool> {
    let last = Last::read(&site.place)?.filter(|last| last.open).and_then(|last| last.serves);
    Ok(last.is_some_and(|serves| serves.commit == wanted.commit) && lock::holder(&site.place.lock())?.is_some())
}

/// Root's side: announces the part and sends it through the socket.
///
/// # Errors
/// If it cannot be read, or nobody takes it.
pub fn give(site: &Site, wanted: &Wanted, channel: &mut Channel) -> Result<()> {
    let opened = open(site, wanted)?;
    let answer = Answer::Deliverable { size: opened.as_ref().map(|opened| opened.whole) };
    channel.send(&door::write_answer(&answer)?, PATIENCE)?;
    let Some(opened) = opened else { return Ok(()) };
    pieces(opened, wanted.offset, &mut |piece| channel.send_bytes(piece, PATIENCE))
}

/// The forced command's side on a whole-machine node: what root hands over goes to standard output.
///
/// # Errors
/// If root refuses it or cannot be reached.
pub fn of_root(root: &Path, who: &Person, wanted: &Wanted) -> Result<()> {
    let socket = NodePlace::new(root).socket();
    let asked = Ask::Deliverable { who: who.clone(), wanted: wanted.clone() };
    let (mut channel, size) = match remote::ask(&socket, &asked)? {
        (channel, Answer::Deliverable { size }) => (channel, size),
        (_, other) => return Err(remote::unexpected(&other)),
    };
    let mut out = std::io::stdout().lock();
    let doing = || "cannot hand on a deliverable".to_string();
    out.write_all(Head::from(size).line().as_bytes()).context(doing)?;
    let mut left = size.unwrap_or(wanted.offset).saturating_sub(wanted.offset);
    while left > 0 {
        let piece = channel.receive_bytes(usize::try_from(left).unwrap_or(PIECE).min(PIECE), PATIENCE)?;
        if piece.is_empty() {
            return Err(Error::failed("the node's service ended in the middle of a deliverable"));
        }
        out.write_all(&piece).context(doing)?;
        left -= piece.len() as u64;
    }
    out.flush().context(doing)
}

/// What may be asked of a directory node by the key of another one.
#[derive(Debug, PartialEq, Eq)]
pub enum Served {
    /// The list of what is there, as JSON.
    List,
    /// A part of a deliverable.
    Send(Wanted),
}

/// What somebody asks with `SSH_ORIGINAL_COMMAND`: exactly the two questions that are served, about this one project.
///
/// # Errors
/// Of kind `Usage` or `Refused`, if it is anything else.
pub fn words_of_ssh(original: Option<&OsStr>, project: &ProjectName) -> Result<Served> {
    let words = words::split(original.map_or(&[][..], OsStr::as_encoded_bytes))?;
    let texts: Vec<&str> = words.iter().map(String::as_str).collect();
    match texts[..] {
        ["release", "list", name, "--json"] if name == project.as_str() => Ok(Served::List),
        ref question if Wanted::is_meant(question) => {
            let wanted = Wanted::parse(question)?;
            if wanted.project != *project {
                return Err(Error::refused(format!("this key is for deliverables of {project}")));
            }
            Ok(Served::Send(wanted))
        }
        _ => Err(Error::refused(format!("this key is for deliverables of {project} and does nothing else"))
            .hint(format!("release list {project} --json, or what mc_project itself asks"))),
    }
}

/// A directory node's side: the part goes to standard output.
///
/// # Errors
/// If it cannot be read or nobody takes it.
pub fn serve_own(site: &Site, wanted: &Wanted) -> Result<()> {
    let opened = open(site, wanted)?;
    let mut out = std::io::stdout().lock();
    let doing = || "cannot hand on a deliverable".to_string();
    let head = Head::from(opened.as_ref().map(|opened| opened.whole));
    out.write_all(head.line().as_bytes()).context(doing)?;
    if let Some(opened) = opened {
        pieces(opened, wanted.offset, &mut |piece| out.write_all(piece).context(doing))?;
    }
    out.flush().context(doing)
}

/// Exactly the announced bytes: no more although the file may grow, and an error where it has become shorter.
fn pieces(opened: Opened, offset: u64, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let Opened { mut file, whole } = opened;
    let mut buffer = vec![0_u8; PIECE];
    let mut left = whole - offset;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let count = file.read(&mut buffer[..most]).context(|| "cannot read a deliverable".to_string())?;
        if count == 0 {
            return Err(Error::failed("a deliverable became shorter while it was sent"));
        }
        take(&buffer[..count])?;
        left -= count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_directory_node_asks_two_questions_about_one_project_and_nothing_else() {
        let shop: ProjectName = "shop".parse().unwrap();
        let commit = "1a2b3c4d5e000000000000000000000000000000";
        let ask = |text: &str| words_of_ssh(Some(OsStr::new(&text.replace("COMMIT", commit))), &shop);
        assert_eq!(ask("release list shop --json").unwrap(), Served::List);
        let Served::Send(wanted) = ask("release send shop COMMIT tar.zst --offset 7").unwrap() else { panic!() };
        assert_eq!((wanted.commit.as_str(), wanted.offset), (commit, 7));
        for text in [
            "",
            "sh",
            "release",
            "release list shop",
            "release list blog --json",
            "release list shop --json --root /x",
            "release send blog COMMIT json --offset 0",
            "release send shop COMMIT json --offset 0; id",
            "release send shop COMMIT ../../etc/passwd --offset 0",
            "release pack shop",
            "release checkout shop -1 /tmp/x",
            "mc_project release list shop --json",
            "git-upload-pack 'shop'",
            "status shop",
            "internal-sftp",
        ] {
            assert!(ask(text).is_err(), "{text}");
        }
        assert!(words_of_ssh(None, &shop).is_err());
    }
}
