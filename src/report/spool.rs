//! Mails and webhooks on their way out: `state/spool/`, one file per deployment and receiver, tried again later and later.
//!
//! Nothing here waits: who sends calls [`retry`] and asks [`next_due`] when to come again. What is not sent within three days
//! is given up: its file gets the ending `.given-up`, and the caller tells it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::notice::Notice;
use crate::project::ids::DeploymentId;
use crate::project::place::Place;
use crate::sys::error::{Context, Result};
use crate::sys::fs;

/// No more wait than this: when one more comes, the oldest is given up.
pub const MAX_WAITING: usize = 100;

const GIVEN_UP_AFTER: SignedDuration = SignedDuration::from_hours(72);

/// The longest pause between two attempts.
const LONGEST: SignedDuration = SignedDuration::from_hours(2);

const FILE_LIMIT: u64 = 4 * 1024 * 1024;

const FORMAT: u32 = 1;

/// A mail or webhook that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Format of the file.
    pub format: u32,
    /// The deployment it tells of.
    pub deployment: DeploymentId,
    /// What goes out: the key `mail` or `hook`.
    #[serde(flatten)]
    pub notice: Notice,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was tried first.
    pub first: Timestamp,
    /// When it was tried last.
    pub last: Timestamp,
    /// Why the last attempt failed.
    pub error: String,
}

/// What a round of attempts did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Mails that were sent.
    pub sent: usize,
    /// Mails that wait on.
    pub waiting: usize,
    /// Mails that were given up; to be told.
    pub given_up: Vec<Waiting>,
}

impl Waiting {
    /// The name of its file.
    #[must_use]
    pub fn file_name(&self) -> String {
        // The address is a stranger's text, so the name has its digest.
        let receiver = blake3::hash(self.notice.receiver().as_bytes()).to_hex();
        format!("{}-{}.json", self.deployment, &receiver.as_str()[..12])
    }

    fn path(&self, place: &Place) -> PathBuf {
        place.spool().join(self.file_name())
    }

    /// Whether it is time for the next attempt. A clock that was set back delays nothing for longer than the longest pause.
    fn is_due(&self, now: Timestamp) -> bool {
        let since = now.duration_since(self.last);
        since >= pause(self.attempts) || since < -LONGEST
    }

    fn is_too_old(&self, now: Timestamp) -> bool {
        now.duration_since(self.first) >= GIVEN_UP_AFTER
    }

    fn write(&self, place: &Place) -> Result<()> {
        let json = serde_json::to_vec_pretty(self).context(|| "cannot spool a mail or webhook".to_string())?;
        fs::write_durable(&self.path(place), &json, 0o600)
    }

    fn give_up(&self, place: &Place) -> Result<()> {
        let path = self.path(place);
        fs::rename_durable(&path, &path.with_extension("given-up"))
    }
}

/// The pause after so many failed attempts.
fn pause(attempts: u32) -> SignedDuration {
    match attempts {
        0 => SignedDuration::ZERO,
        1 => SignedDuration::from_secs(10),
        2 => SignedDuration::from_mins(1),
        3 => SignedDuration::from_mins(5),
        4 => SignedDuration::from_mins(30),
        _ => LONGEST,
    }
}

/// Keeps what is to be sent as soon as the deployment is closed; what waits already for the same deployment and receiver is
/// replaced. Gives back what was given up to make room.
///
/// # Errors
/// If the spool cannot be written.
pub fn put(place: &Place, id: &DeploymentId, notice: Notice, now: Timestamp) -> Result<Vec<Waiting>> {
    fs::ensure_dir(&place.spool(), 0o700)?;
    let error = "not tried yet".to_string();
    let waiting = Waiting { format: FORMAT, deployment: id.clone(), notice, attempts: 0, first: now, last: now, error };
    let mut present = list(place)?;
    present.retain(|other| other.path(place) != waiting.path(place));
    let too_many = (present.len() + 1).saturating_sub(MAX_WAITING);
    let given_up: Vec<Waiting> = present.drain(..too_many).collect();
    for old in &given_up {
        old.give_up(place)?;
    }
    forget_old(place)?;
    waiting.write(place)?;
    Ok(given_up)
}

/// When the next attempt is due; `None`: nothing waits. What is overdue counts as due now.
///
/// # Errors
/// If the spool cannot be read.
pub fn next_due(place: &Place, now: Timestamp) -> Result<Option<Timestamp>> {
    let due = |waiting: &Waiting| {
        if waiting.is_due(now) { now } else { waiting.last.checked_add(pause(waiting.attempts)).unwrap_or(now) }
    };
    Ok(list(place)?.iter().map(due).min())
}

/// Makes everything due at once, what was given up too.
///
/// # Errors
/// If the spool cannot be written.
pub fn make_due(place: &Place, now: Timestamp) -> Result<()> {
    for path in files(place, "given-up")? {
        fs::rename_durable(&path, &path.with_extension("json"))?;
    }
    for waiting in list(place)? {
        Waiting { attempts: 0, first: now, last: now, ..waiting }.write(place)?;
    }
    Ok(())
}

/// All mails that wait, oldest first. A file that cannot be understood is passed over: see [`damaged`].
///
/// # Errors
/// If the spool cannot be read.
pub fn list(place: &Place) -> Result<Vec<Waiting>> {
    let mut all = Vec::new();
    for path in files(place, "json")? {
        if let Some(waiting) = read(&path)? {
            all.push(waiting);
        }
    }
    all.sort_by(|a: &Waiting, b: &Waiting| {
        (a.first, &a.deployment, a.notice.receiver()).cmp(&(b.first, &b.deployment, b.notice.receiver()))
    });
    Ok(all)
}

/// What waits in the file of this name.
///
/// # Errors
/// If the spool cannot be read.
pub fn one(place: &Place, file_name: &str) -> Result<Option<Waiting>> {
    Ok(list(place)?.into_iter().find(|waiting| waiting.file_name() == file_name))
}

/// The files of the spool that cannot be understood.
///
/// # Errors
/// If the spool cannot be read.
pub fn damaged(place: &Place) -> Result<Vec<PathBuf>> {
    let mut bad = Vec::new();
    for path in files(place, "json")? {
        if read(&path)?.is_none() {
            bad.push(path);
        }
    }
    Ok(bad)
}

/// What was given up and is still kept for reading, oldest first.
///
/// # Errors
/// If the spool cannot be read.
pub fn given_up(place: &Place) -> Result<Vec<Waiting>> {
    let mut all = Vec::new();
    for path in files(place, "given-up")? {
        all.extend(read(&path)?);
    }
    Ok(all)
}

/// Forgets what was given up; tells how much that was.
///
/// # Errors
/// If it cannot be removed.
pub fn forget(place: &Place) -> Result<usize> {
    let paths = files(place, "given-up")?;
    for path in &paths {
        fs::remove_file(path)?;
    }
    Ok(paths.len())
}

/// Tries what is due, for `budget` at most (what is not reached waits on).
///
/// # Errors
/// If the spool cannot be read or written; that a mail cannot be sent is no error.
pub fn retry(
    place: &Place,
    now: Timestamp,
    budget: Duration,
    send: &mut dyn FnMut(&Waiting) -> Result<()>,
) -> Result<Round> {
    let begin = Instant::now();
    let mut round = Round::default();
    for mut waiting in list(place)? {
        if !waiting.is_due(now) || begin.elapsed() >= budget {
            round.waiting += 1;
            continue;
        }
        match send(&waiting) {
            Ok(()) => {
                fs::remove_file(&waiting.path(place))?;
                round.sent += 1;
            }
            Err(error) => {
                waiting.attempts = waiting.attempts.saturating_add(1);
                waiting.last = now;
                waiting.error = error.one_line();
                waiting.write(place)?;
                if waiting.is_too_old(now) {
                    waiting.give_up(place)?;
                    round.given_up.push(waiting);
                } else {
                    round.waiting += 1;
                }
            }
        }
    }
    forget_old(place)?;
    Ok(round)
}

/// Of what was given up only so much is kept as may wait; ids begin with a date, so the first names are the oldest.
fn forget_old(place: &Place) -> Result<()> {
    let kept = files(place, "given-up")?;
    for path in &kept[..kept.len().saturating_sub(MAX_WAITING)] {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn files(place: &Place, ending: &str) -> Result<Vec<PathBuf>> {
    let names = fs::names(&place.spool())?;
    // A name with a dot in front is what a crash left of a durable write.
    let wanted = names.into_iter().filter(|name| !name.starts_with('.'));
    let paths = wanted.map(|name| place.spool().join(name));
    Ok(paths.filter(|path| path.extension().is_some_and(|e| e == ending)).collect())
}

fn read(path: &std::path::Path) -> Result<Option<Waiting>> {
    let bytes = fs::read_bounded(path, FILE_LIMIT)?.unwrap_or_default();
    Ok(serde_json::from_slice(&bytes).ok().filter(|waiting: &Waiting| waiting.format <= FORMAT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::mail::Mail;
    use crate::report::samples;
    use crate::sys::error::Error;
    use std::os::unix::fs::PermissionsExt;

    fn at(minutes: i64) -> Timestamp {
        "2026-11-20T15:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_mins(minutes)
    }

    fn mail(to: &str) -> Notice {
        Notice::Mail(Mail {
            from: "mc@x.org".into(),
            to: to.into(),
            subject: "s".into(),
            text: "t".into(),
            html: None,
            date: at(0),
            message_id: "a@b".into(),
            thread: None,
            project: None,
        })
    }

    fn spool(place: &Place, n: u64, to: &str, now: Timestamp) -> Vec<Waiting> {
        put(place, &samples::id(n), mail(to), now).unwrap()
    }

    /// One round at this minute; how many attempts were made, and the round.
    fn round(place: &Place, minute: i64, works: bool) -> (usize, Round) {
        let mut tried = 0;
        let round = retry(place, at(minute), Duration::from_mins(1), &mut |_| {
            tried += 1;
            if works { Ok(()) } else { Err(Error::failed("still refused")) }
        });
        (tried, round.unwrap())
    }

    #[test]
    fn a_mail_is_tried_at_once_then_later_and_later_and_given_up_after_3_days() {
        let (_dir, place) = samples::place();
        spool(&place, 1, "a@x.org", at(0));
        let mut tries = Vec::new();
        let mut given_up = Vec::new();
        for minute in 0..5 * 24 * 60 {
            let (count, round) = round(&place, minute, false);
            if count > 0 {
                tries.push(minute);
            }
            given_up.extend(round.given_up.into_iter().map(|w| (minute, w.attempts, w.error)));
        }
        assert_eq!(tries[..7], [0, 1, 2, 7, 37, 157, 277]);
        let last = *tries.last().unwrap();
        assert!((3 * 24 * 60..3 * 24 * 60 + 120).contains(&last), "{last}");
        assert_eq!(given_up, [(last, u32::try_from(tries.len()).unwrap(), "still refused".to_string())]);
        assert!(list(&place).unwrap().is_empty());
        assert_eq!(super::given_up(&place).unwrap().len(), 1);
        assert_eq!(next_due(&place, at(0)).unwrap(), None);
        make_due(&place, at(9999)).unwrap();
        assert_eq!(next_due(&place, at(9999)).unwrap(), Some(at(9999)));
        assert_eq!(self::round(&place, 9999, true).1.sent, 1, "what was given up is sent when a person asks for it");
    }

    #[test]
    fn what_is_sent_is_gone_and_files_are_private_and_one_per_deployment_and_receiver() {
        let (_dir, place) = samples::place();
        for to in ["a@x.org", "b@x.org", "../../evil@x.org", "a@x.org"] {
            spool(&place, 1, to, at(0));
        }
        spool(&place, 2, "a@x.org", at(0));
        assert_eq!(list(&place).unwrap().len(), 4);
        for name in fs::names(&place.spool()).unwrap() {
            let meta = std::fs::metadata(place.spool().join(&name)).unwrap();
            assert_eq!(meta.permissions().mode() & 0o777, 0o600, "{name}");
        }
        assert_eq!(round(&place, 1, true), (4, Round { sent: 4, ..Round::default() }));
        assert!(fs::names(&place.spool()).unwrap().is_empty());
    }

    #[test]
    fn a_hundred_mails_wait_at_most_and_the_oldest_is_given_up_and_told() {
        let (_dir, place) = samples::place();
        for n in 0..100 {
            assert!(spool(&place, n, "a@x.org", at(i64::try_from(n).unwrap())).is_empty());
        }
        let told = spool(&place, 100, "a@x.org", at(200));
        assert_eq!(told.iter().map(|w| w.first).collect::<Vec<_>>(), [at(0)]);
        assert!(spool(&place, 100, "a@x.org", at(201)).is_empty(), "replacing needs no room");
        assert_eq!((list(&place).unwrap().len(), given_up(&place).unwrap().len()), (100, 1));
    }

    #[test]
    fn a_clock_that_jumps_delays_no_mail_for_ever_and_loses_none_untried() {
        let (_dir, place) = samples::place();
        spool(&place, 1, "a@x.org", at(0));
        assert_eq!(round(&place, -60 * 24 * 365, false).0, 1, "set back by a year: tried at once");
        let (_dir, place) = samples::place();
        spool(&place, 1, "a@x.org", at(0));
        let ten_years = 60 * 24 * 3650;
        assert_eq!(round(&place, ten_years, true), (1, Round { sent: 1, ..Round::default() }));
    }

    #[test]
    fn a_file_of_an_older_version_is_still_sent() {
        let (_dir, place) = samples::place();
        let old = serde_json::json!({
            "format": 1, "deployment": samples::id(1), "attempts": 1, "first": at(0), "last": at(0), "error": "refused",
            "mail": {"from": "a@x.org", "to": "b@x.org", "subject": "s", "text": "t", "date": at(0), "message_id": "m@x"},
        });
        fs::ensure_dir(&place.spool(), 0o700).unwrap();
        std::fs::write(place.spool().join("old.json"), old.to_string()).unwrap();
        let Notice::Mail(mail) = &list(&place).unwrap()[0].notice else { panic!("no mail") };
        assert_eq!((mail.to.as_str(), mail.html.as_deref()), ("b@x.org", None));
    }

    #[test]
    fn the_time_of_the_next_attempt_is_told() {
        let (_dir, place) = samples::place();
        spool(&place, 1, "a@x.org", at(0));
        assert_eq!(next_due(&place, at(0)).unwrap(), Some(at(0)));
        round(&place, 0, false);
        let soon = at(0) + SignedDuration::from_secs(10);
        assert_eq!(next_due(&place, at(0)).unwrap(), Some(soon));
    }

    #[test]
    fn the_budget_ends_a_round_and_the_rest_waits() {
        let (_dir, place) = samples::place();
        for n in 0..3 {
            spool(&place, n, "a@x.org", at(0));
        }
        let mut tried = 0;
        let round = retry(&place, at(1), Duration::from_millis(50), &mut |_| {
            tried += 1;
            std::thread::sleep(Duration::from_millis(60));
            Ok(())
        });
        assert_eq!((tried, round.unwrap()), (1, Round { sent: 1, waiting: 2, given_up: Vec::new() }));
    }

    #[test]
    fn a_file_that_cannot_be_understood_keeps_no_other_mail_back() {
        let (_dir, place) = samples::place();
        spool(&place, 1, "a@x.org", at(0));
        std::fs::write(place.spool().join("x.json"), "{").unwrap();
        std::fs::write(place.spool().join(".y.json.new"), "{").unwrap();
        assert_eq!(damaged(&place).unwrap(), [place.spool().join("x.json")]);
        assert_eq!(round(&place, 1, true).1.sent, 1);
    }
}
