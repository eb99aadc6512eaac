//! Commits: which one a person means, which ones lead to it.

use crate::sys::error::{Error, Result};
use crate::sys::escape;
use crate::sys::names::{ObjectId, RefName};

use super::{Backend, CommitInfo, Repo, library};

/// More steps back than this are a typing error.
const MAX_STEPS: u32 = 100_000;

impl Repo {
    /// The commit that a person means: `HEAD`, a full or short ref name, a full or short id (4 digits at least), each
    /// with `~N` and `^N` behind it. Tags are followed. `None` if there is no such commit.
    ///
    /// # Errors
    /// If a short id is not unique, or the text begins with `-` or is unreasonably long.
    pub fn resolve_commit(&self, revision: &str) -> Result<Option<ObjectId>> {
        if revision.starts_with('-') || revision.len() > 1024 || revision.contains(char::is_control) {
            let shown = escape::visible_bounded(revision.as_bytes(), 80);
            return Err(Error::usage(format!("`{shown}` is no revision")).hint("name a branch, a tag or a commit"));
        }
        let (base, steps) = revision.split_at(revision.find(['~', '^']).unwrap_or(revision.len()));
        let Some(steps) = parse_steps(steps) else { return Ok(None) };
        let Some(id) = self.resolve_name(base)? else { return Ok(None) };
        let Some(mut commit) = self.peel_to_commit(&id)? else { return Ok(None) };
        for step in steps {
            match self.step_back(&commit, step)? {
                Some(parent) => commit = parent,
                None => return Ok(None),
            }
        }
        Ok(Some(commit))
    }

    fn resolve_name(&self, base: &str) -> Result<Option<ObjectId>> {
        let is_hex = base.bytes().all(|b| b.is_ascii_hexdigit());
        if is_hex && base.len() == self.format.digits() {
            return base.to_ascii_lowercase().parse().map(Some);
        }
        if base == "HEAD" || base == "@" {
            return self.resolve_head();
        }
        // The order of gitrevisions(7).
        for prefix in ["", "refs/", "refs/tags/", "refs/heads/", "refs/remotes/"] {
            let Ok(name) = format!("{prefix}{base}").parse::<RefName>() else { continue };
            if let Some(id) = self.read_ref(&name)? {
                return Ok(Some(id));
            }
        }
        if is_hex && (4..self.format.digits()).contains(&base.len()) {
            return self.by_prefix(&base.to_ascii_lowercase());
        }
        Ok(None)
    }

    fn resolve_head(&self) -> Result<Option<ObjectId>> {
        match &self.backend {
            Backend::Library(repository) => library::read_ref(repository, "HEAD"),
            Backend::Program => {
                let output = self.git().args(["rev-parse", "--verify", "--quiet", "HEAD"]).output()?;
                match output.code {
                    Some(0) => String::from_utf8_lossy(&output.stdout).trim().parse().map(Some),
                    Some(1) => Ok(None),
                    _ => Err(output.failure("read HEAD")),
                }
            }
        }
    }

    fn by_prefix(&self, prefix: &str) -> Result<Option<ObjectId>> {
        if let Backend::Library(repository) = &self.backend {
            return library::by_prefix(repository, prefix);
        }
        let call = self.git().args(["rev-parse", &format!("--disambiguate={prefix}")]);
        let output = call.run(&format!("look up {prefix}"))?;
        let text = String::from_utf8_lossy(&output);
        let mut found = text.lines();
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some(id), None) => id.parse().map(Some),
            (Some(_), Some(_)) => Err(ambiguous(prefix)),
        }
    }

    fn step_back(&self, commit: &ObjectId, step: Step) -> Result<Option<ObjectId>> {
        match step {
            Step::Parent(0) | Step::Back(0) => Ok(Some(commit.clone())),
            Step::Parent(n) => Ok(self.commit(commit)?.parents.into_iter().nth(n as usize - 1)),
            Step::Back(n) => {
                let mut at = commit.clone();
                for _ in 0..n {
                    match self.commit(&at)?.parents.into_iter().next() {
                        // In a shallow repository the parent is named but not here.
                        Some(parent) if self.header(&parent)?.is_some() => at = parent,
                        _ => return Ok(None),
                    }
                }
                Ok(Some(at))
            }
        }
    }

    /// libgit2, if it can walk this history: opened bare, it does not know where a shallow one ends.
    fn library_for_history(&self) -> Option<&git2::Repository> {
        match &self.backend {
            Backend::Library(repository) if !self.is_shallow() => Some(repository),
            _ => None,
        }
    }

    /// Whether `old` is `new` or leads to it.
    ///
    /// # Errors
    /// If one of them leads to no commit here.
    pub fn is_ancestor(&self, old: &ObjectId, new: &ObjectId) -> Result<bool> {
        let commit = |id: &ObjectId| self.peel_to_commit(id)?.ok_or_else(|| self.missing(id));
        let (old, new) = (commit(old)?, commit(new)?);
        if old == new {
            return Ok(true);
        }
        if let Some(repository) = self.library_for_history() {
            return library::is_ancestor(repository, &old, &new);
        }
        let output = self.git().args(["merge-base", "--is-ancestor", old.as_str(), new.as_str()]).output()?;
        match output.code {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(output.failure("compare two commits")),
        }
    }

    /// At most `limit` commits that lead to `to` and not to `not`, newest first. A `not` that is gone hides nothing.
    ///
    /// # Errors
    /// If `to` leads to no commit here, or history is damaged.
    pub fn log(&self, to: &ObjectId, not: Option<&ObjectId>, limit: usize) -> Result<Vec<CommitInfo>> {
        let to = self.peel_to_commit(to)?.ok_or_else(|| self.missing(to))?;
        let not = not.map(|id| self.peel_to_commit(id)).transpose()?.flatten();
        let ids = if let Some(repository) = self.library_for_history() {
            library::log(repository, &to, not.as_ref(), limit)?
        } else {
            // git reads the number as a C int.
            let limit = i32::try_from(limit).unwrap_or(i32::MAX);
            let call = self.git().args(["rev-list", &format!("--max-count={limit}"), to.as_str()]);
            let call = if let Some(not) = &not { call.arg(format!("^{not}")) } else { call };
            let output = call.arg("--").run(&format!("list the commits of {}", to.short()))?;
            String::from_utf8_lossy(&output).lines().map(str::parse).collect::<Result<_>>()?
        };
        ids.iter().map(|id| self.commit(id)).collect()
    }
}

/// The error of a short id that several objects have.
pub fn ambiguous(prefix: &str) -> Error {
    Error::usage(format!("`{prefix}` is the beginning of several ids")).hint("give more digits")
}

/// One step behind the name of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// `~N`: so many first parents back.
    Back(u32),
    /// `^N`: the parent of this number.
    Parent(u32),
}

fn parse_steps(text: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = text;
    while let Some(sign) = rest.chars().next() {
        rest = &rest[sign.len_utf8()..];
        if sign == '^' {
            // `^{commit}` and `^{}` follow tags, which happens anyway.
            if let Some(after) = rest.strip_prefix("{commit}").or_else(|| rest.strip_prefix("{}")) {
                rest = after;
                continue;
            }
        } else if sign != '~' {
            return None;
        }
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number = if digits == 0 { 1 } else { rest[..digits].parse().ok()? };
        rest = &rest[digits..];
        steps.push(if sign == '~' { Step::Back(number) } else { Step::Parent(number) });
    }
    let count = |step: &Step| match step {
        Step::Back(n) | Step::Parent(n) => *n,
    };
    let small = steps.len() <= 64 && steps.iter().all(|step| count(step) <= MAX_STEPS);
    small.then_some(steps)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::on_each;
    use super::*;

    #[test]
    fn steps_are_read_as_git_reads_them() {
        assert_eq!(
            parse_steps("~^2~3^{commit}^0"),
            Some(vec![Step::Back(1), Step::Parent(2), Step::Back(3), Step::Parent(0)])
        );
        for bad in ["^x", "~1x", "^{tree}", "~99999999999", "~999999", "^é"] {
            assert_eq!(parse_steps(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_commit_is_found_by_every_name_that_people_use() {
        on_each(|f| {
            let one = f.commit_files(&[("a", b"1")], &[], "one");
            let two = f.commit_files(&[("a", b"2")], &[&one], "two");
            let side = f.commit_files(&[("a", b"3")], &[&one], "side");
            let merge = f.commit_files(&[("a", b"4")], &[&two, &side], "merge");
            f.git(&["update-ref", "refs/heads/main", merge.as_str()]);
            f.git(&["update-ref", "refs/heads/topic/x", two.as_str()]);
            f.git(&["tag", "-a", "v1", "-m", "tag", one.as_str()]);
            f.git(&["tag", "-a", "v1-again", "-m", "tag", "v1"]);
            let tree = f.git(&["rev-parse", "main^{tree}"]);
            f.git(&["tag", "tree", &tree]);
            let cases = [
                ("main", Some(&merge)),
                ("HEAD", Some(&merge)),
                ("@", Some(&merge)),
                ("heads/main", Some(&merge)),
                ("refs/heads/main", Some(&merge)),
                ("topic/x", Some(&two)),
                ("v1", Some(&one)),
                ("v1-again", Some(&one)),
                ("v1^{commit}", Some(&one)),
                ("main~1", Some(&two)),
                ("main^2", Some(&side)),
                ("main^2~1", Some(&one)),
                ("main~2", Some(&one)),
                ("main~3", None),
                ("main^3", None),
                (merge.as_str(), Some(&merge)),
                (&merge.as_str()[..12], Some(&merge)),
                (&merge.as_str()[..3], None),
                ("tree", None),
                (tree.as_str(), None),
                ("nowhere", None),
                ("", None),
                ("a b", None),
                ("main:a", None),
                (f.nothing().as_str(), None),
            ]
            .map(|(revision, wanted)| (revision.to_string(), wanted.cloned()));
            for (revision, wanted) in cases {
                assert_eq!(f.repo.resolve_commit(&revision).unwrap(), wanted, "{revision}");
            }
            assert_eq!(f.repo.resolve_commit(&merge.as_str().to_uppercase()).unwrap(), Some(merge.clone()));
            for bad in ["-x", "--all", "a\nb", "a\0"] {
                assert!(f.repo.resolve_commit(bad).is_err(), "{bad:?}");
            }
        });
    }

    #[test]
    fn a_short_id_of_several_objects_is_an_error() {
        on_each(|f| {
            let mut seen = std::collections::HashMap::new();
            let prefix = (0..5000_u32)
                .find_map(|n| {
                    let text = format!("{n}");
                    let id = hash(f.repo.format(), text.as_bytes());
                    let prefix = id[..4].to_string();
                    seen.insert(prefix.clone(), text.clone()).map(|other| (prefix, text, other))
                })
                .unwrap();
            f.blob(prefix.1.as_bytes());
            f.blob(prefix.2.as_bytes());
            let error = f.repo.resolve_commit(&prefix.0).unwrap_err();
            assert!(error.message().contains("several ids"), "{error}");
        });
    }

    /// The id of a blob.
    fn hash(format: super::super::ObjectFormat, content: &[u8]) -> String {
        use ring::digest;
        let algorithm = match format {
            super::super::ObjectFormat::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            super::super::ObjectFormat::Sha256 => &digest::SHA256,
        };
        let mut raw = format!("blob {}\0", content.len()).into_bytes();
        raw.extend_from_slice(content);
        super::super::batch::hex(digest::digest(algorithm, &raw).as_ref())
    }

    #[test]
    fn ancestors_are_told_from_strangers() {
        on_each(|f| {
            let one = f.commit_files(&[("a", b"1")], &[], "one");
            let two = f.commit_files(&[("a", b"2")], &[&one], "two");
            let other = f.commit_files(&[("a", b"3")], &[], "other");
            f.git(&["tag", "-a", "v1", "-m", "tag", one.as_str()]);
            let tag: ObjectId = f.git(&["rev-parse", "v1"]).parse().unwrap();
            assert!(f.repo.is_ancestor(&one, &two).unwrap());
            assert!(f.repo.is_ancestor(&tag, &two).unwrap());
            assert!(f.repo.is_ancestor(&two, &two).unwrap());
            assert!(!f.repo.is_ancestor(&two, &one).unwrap());
            assert!(!f.repo.is_ancestor(&other, &two).unwrap());
            assert!(f.repo.is_ancestor(&f.nothing(), &two).is_err());
            assert!(f.repo.is_ancestor(&one, &f.blob(b"x")).is_err());
        });
    }

    #[test]
    fn the_log_is_newest_first_limited_and_without_what_is_known() {
        on_each(|f| {
            let mut ids: Vec<ObjectId> = Vec::new();
            for n in 0..6 {
                let parents: Vec<&ObjectId> = ids.last().into_iter().collect();
                let commit = f.commit_files(&[("a", b"x")], &parents, &format!("number {n}\nstill\n\nbody"));
                ids.push(commit);
            }
            let log = |to: &ObjectId, not: Option<&ObjectId>, limit| -> Vec<ObjectId> {
                f.repo.log(to, not, limit).unwrap().into_iter().map(|commit| commit.id).collect()
            };
            let back = |from: usize, to: usize| ids[from..to].iter().rev().cloned().collect::<Vec<_>>();
            assert_eq!(log(&ids[5], None, usize::MAX), back(0, 6));
            assert_eq!(log(&ids[5], None, 2), back(4, 6));
            assert_eq!(log(&ids[5], Some(&ids[2]), 100), back(3, 6));
            assert_eq!(log(&ids[5], Some(&f.nothing()), 1), back(5, 6));
            assert_eq!(log(&ids[1], Some(&ids[4]), 100), []);
            assert!(f.repo.log(&f.nothing(), None, 1).is_err());
            let info = f.repo.commit(&ids[1]).unwrap();
            assert_eq!(info.parents, [ids[0].clone()]);
            assert_eq!(info.subject, "number 1 still");
            assert_eq!((info.author.as_str(), info.time), ("A Author <a@example.org>", 1_700_000_100));
        });
    }

    #[test]
    fn a_shallow_repository_ends_where_it_was_cut() {
        on_each(|f| {
            let one = f.commit_files(&[("a", b"1")], &[], "one");
            let two = f.commit_files(&[("a", b"2")], &[&one], "two");
            let three = f.commit_files(&[("a", b"3")], &[&two], "three");
            assert!(!f.repo.is_shallow());
            // As after a shallow push: the parent of `two` is not here.
            std::fs::write(f.path.join("shallow"), format!("{two}\n")).unwrap();
            let object = f.path.join("objects").join(&one.as_str()[..2]).join(&one.as_str()[2..]);
            std::fs::remove_file(object).unwrap();
            let repo = f.again();
            assert!(repo.is_shallow());
            let log: Vec<ObjectId> = repo.log(&three, None, 9).unwrap().into_iter().map(|commit| commit.id).collect();
            assert_eq!(log, [three.clone(), two.clone()]);
            assert!(repo.is_ancestor(&two, &three).unwrap());
            assert!(!repo.is_ancestor(&three, &two).unwrap());
            assert_eq!(repo.resolve_commit(&format!("{three}~2")).unwrap(), None);
        });
    }

    #[test]
    fn replace_refs_are_not_followed() {
        on_each(|f| {
            let good = f.commit_files(&[("a", b"good")], &[], "good");
            let evil = f.commit_files(&[("a", b"evil")], &[], "evil");
            f.git(&["replace", good.as_str(), evil.as_str()]);
            let repo = f.again();
            assert_eq!(repo.commit(&good).unwrap().subject, "good");
            let path = super::super::fixture::path("a");
            assert_eq!(repo.blob_at(&good, &path, 10).unwrap().unwrap(), b"good");
        });
    }
}
