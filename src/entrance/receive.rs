//! What a push asks for, and what follows from it: pure decisions, one per ref update.
//!
//! Only full ref names are compared: `refs/tags/main` and `refs/heads/main/x` are not the branch `main`.

use std::io::{BufRead, Read};

use crate::entrance::{ProjectFacts, RepoKind};
use crate::project::ids::{ObjectId, RefName};
use crate::project::request::Options;
use crate::sys::error::{Context, Error, Result};
use crate::sys::escape::visible_bounded;

/// The most ref updates of one push.
pub const MAX_UPDATES: usize = 100_000;
/// The longest line: two ids of 64 digits, two spaces, the longest name that git takes on a path, a line feed.
const MAX_LINE: usize = 2 * 64 + 2 + 8192 + 1;
/// The most bytes of standard input that are read.
const MAX_INPUT: u64 = 32 * 1024 * 1024;
/// The branches that are watched until the first push chooses one of them.
pub const FIRST_BRANCHES: [&str; 2] = ["main", "master"];

/// One ref update of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// What the ref is (zero: it is new).
    pub old: ObjectId,
    /// What it shall become (zero: it is deleted).
    pub new: ObjectId,
    /// The name as git gave it.
    pub name: Vec<u8>,
    /// The name, if it is well-formed UTF-8; others are stored by git and are nothing to us.
    pub refname: Option<RefName>,
}

impl Update {
    /// Reads `<old> SP <new> SP <ref>`.
    ///
    /// # Errors
    /// If the line has another form.
    pub fn parse(line: &[u8]) -> Result<Self> {
        let bad = |why: &str| {
            Error::usage(format!("`{}` is no ref update: {why}", visible_bounded(line, 256)))
                .hint("this program is called by git as a hook; see mc_project --help")
        };
        if line.len() > MAX_LINE {
            return Err(bad("it is too long"));
        }
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let [old, new, name] = fields[..] else { return Err(bad("it has not three fields")) };
        let id = |field: &[u8]| std::str::from_utf8(field).ok().and_then(|text| text.parse::<ObjectId>().ok());
        let (Some(old), Some(new)) = (id(old), id(new)) else {
            return Err(bad("its ids are not 40 or 64 lowercase hexadecimal digits"));
        };
        if old.as_str().len() != new.as_str().len() {
            return Err(bad("its ids have different lengths"));
        }
        if !name.starts_with(b"refs/") || name.iter().any(|b| matches!(b, 0 | b'\n' | b'\r')) {
            return Err(bad("its name is no full ref name"));
        }
        let refname = std::str::from_utf8(name).ok().and_then(|text| text.parse().ok());
        Ok(Self { old, new, name: name.to_vec(), refname })
    }

    /// The name for people: without `refs/heads/`, escaped, bounded.
    #[must_use]
    pub fn shown(&self) -> String {
        let short = self.name.strip_prefix(b"refs/heads/").unwrap_or(&self.name);
        visible_bounded(short, 256)
    }

    /// Whether the ref is to be deleted.
    #[must_use]
    pub fn is_deletion(&self) -> bool {
        self.new.is_zero() && !self.old.is_zero()
    }

    /// Whether an existing ref gets another value.
    #[must_use]
    pub fn is_change(&self) -> bool {
        !self.old.is_zero() && !self.new.is_zero() && self.old != self.new
    }

    /// The branch of that name, if the ref is one.
    #[must_use]
    pub fn branch(&self) -> Option<&str> {
        self.refname.as_ref().and_then(RefName::branch)
    }
}

/// The standard input of a hook: the updates and the bytes they came as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The updates, in git's order.
    pub updates: Vec<Update>,
    /// The input itself, for the repository's own hook.
    pub bytes: Vec<u8>,
}

impl Pushed {
    /// Reads the standard input of pre-receive and post-receive, in bounded memory.
    ///
    /// # Errors
    /// If it cannot be read, is empty, too long, or has a line of another form; no line counts then.
    pub fn read(input: &mut dyn Read) -> Result<Self> {
        let mut reader = std::io::BufReader::new(input.take(MAX_INPUT + 1));
        let mut pushed = Self { updates: Vec::new(), bytes: Vec::new() };
        loop {
            let start = pushed.bytes.len();
            let limit = MAX_LINE as u64 + 1;
            let got = reader
                .by_ref()
                .take(limit)
                .read_until(b'\n', &mut pushed.bytes)
                .context(|| "cannot read what git sends".into())?;
            if got == 0 {
                break;
            }
            if pushed.bytes.len() as u64 > MAX_INPUT || pushed.updates.len() >= MAX_UPDATES {
                return Err(Error::refused(format!("more than {MAX_UPDATES} ref updates in one push")));
            }
            let line = pushed.bytes[start..].strip_suffix(b"\n").ok_or_else(|| {
                let shown = visible_bounded(&pushed.bytes[start..], 256);
                Error::usage(format!("the ref update `{shown}` does not end with a line feed"))
            })?;
            pushed.updates.push(Update::parse(line)?);
        }
        if pushed.updates.is_empty() {
            return Err(Error::usage("no ref update on standard input")
                .hint("this program is called by git as a hook; see mc_project --help"));
        }
        Ok(pushed)
    }
}

/// What is done with one ref update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is deployed.
    Deploy,
    /// The pillar's branch: it is validated and stored; `deploy` also deploys.
    Pillar {
        /// Whether `-o deploy` was given.
        deploy: bool,
    },
    /// Git stores it, nothing is deployed, and this is said.
    Store {
        /// What is said, one line.
        message: String,
        /// Whether the update moves the branch that deploys (`-o no-deploy`), so that its rules hold.
        chooses_branch: bool,
    },
    /// Nothing changes.
    Nothing,
    /// It is refused.
    Refuse {
        /// Why, one line.
        reason: String,
    },
}

/// Decides about every update of a push, in the given order.
///
/// At most one update is deployed. An unset branch is chosen by the first watched branch of the push.
#[must_use]
pub fn decide(kind: RepoKind, facts: &ProjectFacts, options: &Options, updates: &[Update]) -> Vec<Decision> {
    let chosen = match &facts.branch {
        Some(branch) => Some(branch.as_str()),
        None => updates
            .iter()
            .filter(|update| !update.new.is_zero())
            .find_map(|update| update.branch().filter(|name| FIRST_BRANCHES.contains(name))),
    };
    let deploys = kind == RepoKind::Project
        && !options.no_deploy
        && updates.iter().any(|update| chosen.is_some() && update.branch() == chosen && update.old != update.new);
    let judge = Judge { kind, facts, options, chosen, deploys };
    updates.iter().map(|update| judge.one(update)).collect()
}

struct Judge<'a> {
    kind: RepoKind,
    facts: &'a ProjectFacts,
    options: &'a Options,
    /// The branch that counts for this push.
    chosen: Option<&'a str>,
    /// Whether the push deploys something.
    deploys: bool,
}

impl Judge<'_> {
    fn one(&self, update: &Update) -> Decision {
        if let Some(reason) = hostile(update) {
            return Decision::Refuse { reason };
        }
        if is_ours(&update.name) {
            let name = visible_bounded(&update.name, 256);
            return Decision::Refuse { reason: format!("{name} is written by mc_project and cannot be pushed") };
        }
        let counts = self.chosen.is_some() && update.branch() == self.chosen;
        if update.old == update.new {
            return Decision::Nothing;
        }
        match (update.is_deletion(), counts) {
            (true, true) => Decision::Refuse { reason: self.keep_branch(update) },
            (true, false) => store(format!("{}: deleted, nothing deployed; {}", update.shown(), self.serves())),
            (false, true) => self.counted(update),
            (false, false) => store(self.other(update)),
        }
    }

    fn counted(&self, update: &Update) -> Decision {
        match self.kind {
            RepoKind::Pillar => Decision::Pillar { deploy: self.options.deploy },
            RepoKind::Project if self.options.no_deploy => Decision::Store {
                message: format!(
                    "{}: stored, not deployed (no-deploy); {}; to deploy it: mc_project deploy {}",
                    update.shown(),
                    self.serves(),
                    self.facts.name
                ),
                chooses_branch: true,
            },
            RepoKind::Project => Decision::Deploy,
        }
    }

    fn keep_branch(&self, update: &Update) -> String {
        match self.kind {
            RepoKind::Project => format!("{} is the deploy branch and cannot be deleted", update.shown()),
            RepoKind::Pillar => format!("{} is the pillar's branch and cannot be deleted", update.shown()),
        }
    }

    /// What is said about a ref that is stored and not the one that counts, with the refspec that would deploy it.
    fn other(&self, update: &Update) -> String {
        let shown = update.shown();
        let Some(target) = self.chosen else {
            return format!("{shown}: stored, not deployed; the first push of main or master is deployed");
        };
        let name = String::from_utf8_lossy(&update.name);
        let command = match (name.strip_prefix("refs/heads/"), name.strip_prefix("refs/tags/")) {
            _ if !is_plain(target) || !is_plain(&name) => None,
            (Some(branch), _) if is_plain(branch) => Some(format!("{branch}:{target}")),
            (_, Some(tag)) if is_plain(tag) => Some(format!("'{tag}^{{commit}}:refs/heads/{target}'")),
            _ => None,
        };
        let (done, wish) = match self.kind {
            RepoKind::Project => ("stored, not deployed", "to deploy it"),
            RepoKind::Pillar => ("stored, not used", "to use it"),
        };
        match command {
            // `git push node main v1.2`: the tag names what is deployed, there is nothing more to do.
            Some(_) if self.deploys && name.starts_with("refs/tags/") => format!("{shown}: stored"),
            Some(refspec) => format!("{shown}: {done}; {wish}: git push REMOTE {refspec}"),
            None => format!("{shown}: {done}"),
        }
    }

    fn serves(&self) -> String {
        match &self.facts.serves {
            Some(serving) => format!("run still serves {}", serving.commit.short()),
            None => "nothing is deployed yet".to_string(),
        }
    }
}

/// Whether a name may stand in a line that people paste into a shell.
fn is_plain(name: &str) -> bool {
    name.len() <= 200
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-'))
}

fn store(message: String) -> Decision {
    Decision::Store { message, chooses_branch: false }
}

/// Why a name is refused even as a name to store; git itself refuses most of these.
fn hostile(update: &Update) -> Option<String> {
    if update.refname.is_some() {
        return None;
    }
    // Names of other bytes than UTF-8 are git's business as long as they are well-formed otherwise.
    let lossy = String::from_utf8_lossy(&update.name);
    match lossy.parse::<RefName>() {
        Ok(_) if std::str::from_utf8(&update.name).is_err() => None,
        _ => Some(format!("`{}` is no good ref name", update.shown())),
    }
}

fn is_ours(name: &[u8]) -> bool {
    let below = |dir: &[u8]| name.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
    below(b"refs/deploys") || below(b"refs/notes/deploys")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop, proptest};

    use super::*;
    use crate::entrance::fake::{facts, id, serving, update, zero};

    fn messages(kind: RepoKind, facts: &ProjectFacts, options: &Options, updates: &[Update]) -> Vec<String> {
        let text = |decision| match decision {
            Decision::Deploy => "deploy".to_string(),
            Decision::Pillar { deploy } => format!("pillar {deploy}"),
            Decision::Store { message, .. } => message,
            Decision::Nothing => "nothing".to_string(),
            Decision::Refuse { reason } => format!("refused: {reason}"),
        };
        decide(kind, facts, options, updates).into_iter().map(text).collect()
    }

    fn decide_one(name: &str) -> String {
        let updates = [update(&zero(), &id('b'), name)];
        messages(RepoKind::Project, &facts(Some("main")), &Options::default(), &updates).remove(0)
    }

    #[test]
    fn every_bad_form_of_standard_input_is_an_error() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let cases: Vec<Vec<u8>> = vec![
            b"".to_vec(),
            b"\n".to_vec(),
            format!("{a} {b} refs/heads/main").into_bytes(),
            format!("{a}\n").into_bytes(),
            format!("{a} {b}\n").into_bytes(),
            format!("{a} {b} refs/heads/main x\n").into_bytes(),
            format!("{a}  {b} refs/heads/main\n").into_bytes(),
            format!("{a} {b} refs/heads/ma\0in\n").into_bytes(),
            format!("{a} {b} refs/heads/main\r\n").into_bytes(),
            format!("{} {b} refs/heads/main\n", &a[1..]).into_bytes(),
            format!("{a}a {b} refs/heads/main\n").into_bytes(),
            format!("{} {b} refs/heads/main\n", "a".repeat(65)).into_bytes(),
            format!("{} {b} refs/heads/main\n", "a".repeat(64)).into_bytes(),
            format!("{} {b} refs/heads/main\n", a.to_uppercase()).into_bytes(),
            format!("{a} {b} main\n").into_bytes(),
            format!("{a} {b} \n").into_bytes(),
            format!("{a} {b} refs/heads/{}\n", "x".repeat(20_000)).into_bytes(),
            format!("{a} {b} refs/heads/main\n{a} {b} refs/heads/dev").into_bytes(),
        ];
        for bad in cases {
            assert!(Pushed::read(&mut &bad[..]).is_err(), "{}", visible_bounded(&bad, 200));
        }
    }

    #[test]
    fn good_input_of_both_lengths_is_read_and_kept_for_the_own_hook() {
        let text = format!("{} {} refs/heads/a;id\n{0} {1} refs/tags/v1\n", "0".repeat(64), "b".repeat(64));
        let pushed = Pushed::read(&mut text.as_bytes()).unwrap();
        assert_eq!(pushed.updates.len(), 2);
        assert_eq!(pushed.updates[0].branch(), Some("a;id"));
        assert_eq!(pushed.bytes, text.as_bytes());
    }

    #[test]
    fn a_million_lines_are_refused_in_bounded_memory() {
        struct Endless(u64, Vec<u8>);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                let n = buffer.len().min(self.1.len());
                buffer[..n].copy_from_slice(&self.1[..n]);
                self.1.rotate_left(n);
                self.0 += n as u64;
                Ok(n)
            }
        }
        let line = format!("{} {} refs/heads/x\n", "a".repeat(40), "b".repeat(40)).into_bytes();
        let mut input = Endless(0, line);
        assert!(Pushed::read(&mut input).unwrap_err().message().contains("more than 100000"));
        assert!(input.0 <= MAX_INPUT + 16 * 1024, "{}", input.0);
        let mut input = Endless(0, vec![b'x'; 4096]);
        assert!(Pushed::read(&mut input).is_err());
        assert!(input.0 <= 32 * 1024, "a line without end is not read to its end: {}", input.0);
    }

    #[test]
    fn only_the_full_name_of_the_deploy_branch_deploys() {
        assert_eq!(decide_one("refs/heads/main"), "deploy");
        for name in [
            "refs/tags/main",
            "refs/notes/main",
            "refs/heads/main/x",
            "refs/heads/refs/heads/main",
            "refs/pull/1/head",
            "refs/heads/Main",
            "refs/main",
            "refs/heads/mаin",
            "refs/heads/$(id)",
            "refs/heads/-x",
        ] {
            assert!(decide_one(name).contains("stored, not deployed"), "{name}: {}", decide_one(name));
        }
    }

    #[test]
    fn a_stored_ref_is_told_with_the_refspec_that_would_deploy_it() {
        assert_eq!(decide_one("refs/heads/dev"), "dev: stored, not deployed; to deploy it: git push REMOTE dev:main");
        assert_eq!(
            decide_one("refs/tags/v1"),
            "refs/tags/v1: stored, not deployed; to deploy it: git push REMOTE 'v1^{commit}:refs/heads/main'"
        );
        for name in ["refs/heads/$(id)", "refs/heads/a;id", "refs/heads/--upload-pack=x", "refs/heads/a`id`"] {
            assert!(!decide_one(name).contains("git push"), "{name} must not be put into a command to paste");
        }
        assert!(decide_one("refs/heads/a\u{202e}b").contains("a\\u{202e}b: stored"));
        assert!(decide_one(&format!("refs/heads/{}", "x".repeat(5000))).len() < 400);
    }

    #[test]
    fn a_tag_beside_the_deploy_branch_gets_no_advice() {
        let updates = [update(&id('a'), &id('b'), "refs/heads/main"), update(&zero(), &id('b'), "refs/tags/v1")];
        let decided = |options: &Options| messages(RepoKind::Project, &facts(Some("main")), options, &updates);
        assert_eq!(decided(&Options::default()), ["deploy", "refs/tags/v1: stored"]);
        assert!(decided(&Options { no_deploy: true, ..Options::default() })[1].contains("to deploy it"));
    }

    #[test]
    fn names_that_are_not_utf8_are_stored_and_malformed_ones_refused() {
        let line = [b"0".repeat(40), b" ".to_vec(), b"b".repeat(40), b" refs/heads/\xff\xfe".to_vec()].concat();
        let odd = Update::parse(&line).unwrap();
        let decided = messages(RepoKind::Project, &facts(Some("main")), &Options::default(), &[odd]);
        assert_eq!(decided, ["\\xff\\xfe: stored, not deployed"]);
        for name in ["refs/heads/a..b", "refs/heads/a\u{1b}b", "refs/heads/x.lock", "refs/heads//x"] {
            assert!(decide_one(name).starts_with("refused: "), "{name}");
        }
    }

    #[test]
    fn our_own_refs_cannot_be_pushed_or_deleted() {
        let names = ["refs/deploys/current", "refs/deploys/inflight/x", "refs/notes/deploys", "refs/deploys"];
        for name in names {
            assert!(decide_one(name).contains("cannot be pushed"), "{name}");
            let gone = [update(&id('a'), &zero(), name)];
            let decided = messages(RepoKind::Project, &facts(Some("main")), &Options::default(), &gone);
            assert!(decided[0].starts_with("refused: "), "{name}");
        }
        assert!(decide_one("refs/notes/deploys2").contains("stored"));
        assert!(decide_one("refs/heads/refs/deploys/x").contains("stored"));
    }

    #[test]
    fn deleting_the_deploy_branch_is_refused_and_another_deletion_deploys_nothing() {
        let mut facts = facts(Some("main"));
        facts.serves = Some(serving('c'));
        let updates = [update(&id('a'), &zero(), "refs/heads/main"), update(&id('a'), &zero(), "refs/heads/dev")];
        let decided = messages(RepoKind::Project, &facts, &Options::default(), &updates);
        assert_eq!(decided[0], "refused: main is the deploy branch and cannot be deleted");
        assert_eq!(decided[1], "dev: deleted, nothing deployed; run still serves cccccccccc");
    }

    #[test]
    fn without_a_branch_the_first_of_main_and_master_is_chosen_and_only_that_one_deploys() {
        let new = |name| update(&zero(), &id('b'), name);
        let decided = |updates: &[Update]| messages(RepoKind::Project, &facts(None), &Options::default(), updates);
        let both = decided(&[new("refs/heads/dev"), new("refs/heads/master"), new("refs/heads/main")]);
        assert_eq!(both[0], "dev: stored, not deployed; to deploy it: git push REMOTE dev:master");
        assert_eq!(both[1], "deploy");
        assert_eq!(both[2], "main: stored, not deployed; to deploy it: git push REMOTE main:master");
        let other = decided(&[new("refs/heads/dev")]);
        assert_eq!(other[0], "dev: stored, not deployed; the first push of main or master is deployed");
        let deleted = decided(&[update(&id('a'), &zero(), "refs/heads/main"), new("refs/heads/master")]);
        assert!(deleted[0].contains("deleted, nothing deployed"), "{deleted:?}");
        assert_eq!(deleted[1], "deploy");
    }

    #[test]
    fn a_configured_branch_is_the_only_one_that_deploys() {
        let updates = [update(&zero(), &id('b'), "refs/heads/main"), update(&zero(), &id('b'), "refs/heads/rel/1")];
        let decided = messages(RepoKind::Project, &facts(Some("rel/1")), &Options::default(), &updates);
        assert_eq!(decided, ["main: stored, not deployed; to deploy it: git push REMOTE main:rel/1", "deploy"]);
    }

    #[test]
    fn an_update_that_changes_nothing_is_nothing_even_with_zeros() {
        let updates = [update(&id('a'), &id('a'), "refs/heads/main"), update(&zero(), &zero(), "refs/heads/main")];
        let decided = messages(RepoKind::Project, &facts(Some("main")), &Options::default(), &updates);
        assert_eq!(decided, ["nothing", "nothing"]);
    }

    #[test]
    fn a_pillar_push_uses_its_branch_and_deploys_only_when_asked() {
        let updates = [update(&zero(), &id('b'), "refs/heads/main"), update(&zero(), &id('b'), "refs/heads/dev")];
        let decided = |options: &Options| messages(RepoKind::Pillar, &facts(Some("main")), options, &updates);
        let plain = decided(&Options::default());
        assert_eq!(plain, ["pillar false", "dev: stored, not used; to use it: git push REMOTE dev:main"]);
        assert_eq!(decided(&Options { deploy: true, ..Options::default() })[0], "pillar true");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn random_input_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Pushed::read(&mut &bytes[..]);
        }

        #[test]
        fn any_name_after_good_ids_is_decided_without_panic(name in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut line = format!("{} {} refs/heads/", "0".repeat(40), "b".repeat(40)).into_bytes();
            line.extend_from_slice(&name);
            if let Ok(update) = Update::parse(&line) {
                let deploys = decide(RepoKind::Project, &facts(Some("main")), &Options::default(), &[update]);
                assert_eq!(deploys[0] == Decision::Deploy, name == b"main");
            }
        }
    }
}
