//! What was deployed when, as notes on commits: `refs/notes/deploys`.

use crate::sys::error::Result;
use crate::sys::escape;
use crate::sys::names::{ObjectId, RefName};
use crate::sys::path::TreePath;

use super::{Repo, SMALL_OBJECT};

/// The ref of the notes.
const NOTES: &str = "refs/notes/deploys";
/// So many deployments of one commit are remembered.
const KEEP: usize = 50;
/// The name that we write commits of notes under.
pub const NAME: &str = "mc_project";
/// The address that we write commits of notes under.
pub const MAIL: &str = "mc_project@localhost";

impl Repo {
    /// Appends a line to the note on a commit, which keeps its newest 50 lines.
    ///
    /// # Errors
    /// If the note cannot be read or written.
    pub fn add_note(&self, commit: &ObjectId, text: &str) -> Result<()> {
        let present = self.note(commit)?.unwrap_or_default();
        let line = escape::visible(text.trim_end());
        let lines: Vec<&str> = present.lines().chain([line.as_str()]).collect();
        let mut note = lines[lines.len().saturating_sub(KEEP)..].join("\n");
        note.push('\n');
        self.remove_stale_lock(&format!("{NOTES}.lock"))?;
        self.git()
            .env("GIT_AUTHOR_NAME", NAME)
            .env("GIT_AUTHOR_EMAIL", MAIL)
            .env("GIT_COMMITTER_NAME", NAME)
            .env("GIT_COMMITTER_EMAIL", MAIL)
            .args(["notes", "--ref", NOTES, "add", "--force", "--file", "-", commit.as_str()])
            .input(note.as_bytes())
            .run(&format!("add a note to {}", commit.short()))
            .map(|_| ())
    }

    /// The note on a commit.
    ///
    /// # Errors
    /// If the notes cannot be read.
    pub fn note(&self, commit: &ObjectId) -> Result<Option<String>> {
        let Some(notes) = self.read_ref(&NOTES.parse::<RefName>()?)? else { return Ok(None) };
        // With many notes git spreads them over directories named by the first digits of the id.
        let digits = commit.as_str();
        for levels in 0..3 {
            let mut name = String::new();
            for level in 0..levels {
                name.push_str(&digits[2 * level..2 * level + 2]);
                name.push('/');
            }
            name.push_str(&digits[2 * levels..]);
            if let Some(bytes) = self.blob_at(&notes, &TreePath::new(name.as_bytes())?, SMALL_OBJECT)? {
                return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::on_each;

    #[test]
    fn a_note_grows_by_lines_and_keeps_the_newest_fifty() {
        on_each(|f| {
            let commit = f.commit_files(&[("a", b"1")], &[], "one");
            assert_eq!(f.repo.note(&commit).unwrap(), None);
            f.repo.add_note(&commit, "deployed 1\n").unwrap();
            f.repo.add_note(&commit, "# two\nlines").unwrap();
            assert_eq!(f.again().note(&commit).unwrap().unwrap(), "deployed 1\n# two\\u{a}lines\n");
            assert_eq!(f.git(&["notes", "--ref=refs/notes/deploys", "show", commit.as_str()]).lines().count(), 2);
            let many = (0..60).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\n");
            f.git_with(
                &["notes", "--ref=refs/notes/deploys", "add", "-f", "-F", "-", commit.as_str()],
                many.as_bytes(),
            );
            f.repo.add_note(&commit, "last").unwrap();
            let note = f.repo.note(&commit).unwrap().unwrap();
            assert_eq!(note.lines().count(), 50);
            assert!(note.starts_with("line 11\n") && note.ends_with("line 59\nlast\n"), "{note}");
            let author = f.git(&["log", "-1", "--format=%an <%ae> %cn <%ce>", "refs/notes/deploys"]);
            assert_eq!(author, "mc_project <mc_project@localhost> mc_project <mc_project@localhost>");
        });
    }

    #[test]
    fn notes_spread_over_directories_are_found() {
        on_each(|f| {
            let (tree, blob) = (f.tree(&[]), f.blob(b"deep\n"));
            let commit = f.commit(&tree, &[], "one");
            let id = commit.as_str();
            for levels in 0..3 {
                let mut notes = f.tree(&[("100644", &id.as_bytes()[2 * levels..], &blob)]);
                for level in (0..levels).rev() {
                    notes = f.tree(&[("40000", &id.as_bytes()[2 * level..2 * level + 2], &notes)]);
                }
                let notes = f.commit(&notes, &[], "notes");
                f.git(&["update-ref", "refs/notes/deploys", notes.as_str()]);
                assert_eq!(f.repo.note(&commit).unwrap().as_deref(), Some("deep\n"), "{levels}");
            }
        });
    }
}
