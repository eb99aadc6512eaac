//! The git program's own checkout, for recipes that ask for it with `attributes: git`.

use std::ffi::OsString;
use std::path::Path;

use crate::sys::dir::Dir;
use crate::sys::error::{Error, Result};
use crate::sys::fs;
use crate::sys::names::ObjectId;

use super::Repo;

impl Repo {
    /// Writes the tree of a commit into an existing empty directory as the git program does it: with the filters, the
    /// encodings and the line ends that `.gitattributes` asks for. Filter programs come from the machine's git
    /// configuration. Call [`Repo::list`] first: it refuses what is hostile.
    ///
    /// # Errors
    /// If the directory is not empty or git fails; the directory may then hold a part.
    pub fn checkout_with_git(&self, commit: &ObjectId, into: &Path) -> Result<()> {
        let into = fs::canonical(into)?;
        if !Dir::open(&into)?.names()?.is_empty() {
            return Err(Error::bug(format!("{} is not empty", into.display())));
        }
        // The index is private to this checkout and stands beside the directory, where only we write.
        let index = beside(&into, ".git-index")?;
        let lock = beside(&into, ".git-index.lock")?;
        fs::remove_file(&index)?;
        fs::remove_file(&lock)?;
        let mut work_tree = OsString::from("--work-tree=");
        work_tree.push(&into);
        let result = self
            .git()
            .with_system_config()
            // Modes and links exactly as committed, whatever the repository's configuration says.
            .setting("core.fileMode=true")
            .setting("core.symlinks=true")
            .setting("core.sparseCheckout=false")
            .setting("core.splitIndex=false")
            .setting("submodule.recurse=false")
            .env("GIT_INDEX_FILE", &index)
            // A filter may have to fetch what a pointer stands for (LFS); git itself fetches nothing here.
            .env("GIT_ALLOW_PROTOCOL", "https:ssh")
            .arg(work_tree)
            // Not checkout-index: only this reads the attributes from the commit instead of from half-written files.
            .args(["read-tree", "--reset", "-u", commit.as_str()])
            .run(&format!("check out {} with git", commit.short()));
        fs::remove_file(&index)?;
        fs::remove_file(&lock)?;
        result.map(|_| ())
    }
}

fn beside(dir: &Path, suffix: &str) -> Result<std::path::PathBuf> {
    let name = dir.file_name().ok_or_else(|| Error::bug(format!("{} has no name", dir.display())))?;
    let mut file = OsString::from(".");
    file.push(name);
    file.push(suffix);
    Ok(dir.with_file_name(file))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::on_each;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_checkout_of_git_recodes_and_changes_line_ends_and_leaves_nothing_beside() {
        on_each(|f| {
            let attributes = f.blob(b"*.txt text eol=crlf\n*.u text working-tree-encoding=UTF-16LE\n*.id ident\n");
            let (text, link) = (f.blob(b"a\nb\n"), f.blob(b"x.txt"));
            let id = f.blob(b"$Id$\n");
            let inner = f.tree(&[("100644", b"y.u", &text)]);
            let nothing = f.nothing();
            let commit = f.commit_of(&[
                ("100644", b"-first.txt", &text),
                ("100644", b".gitattributes", &attributes),
                ("40000", b"d", &inner),
                ("100644", b"e.id", &id),
                ("120000", b"l", &link),
                ("100755", b"run", &text),
                ("160000", b"sub", &nothing),
                ("100644", b"x.txt", &text),
            ]);
            let into = f.temp.path().join("tree");
            std::fs::create_dir(&into).unwrap();
            f.repo.checkout_with_git(&commit, &into).unwrap();
            let read = |name: &str| std::fs::read(into.join(name)).unwrap();
            assert_eq!(read("x.txt"), b"a\r\nb\r\n");
            assert_eq!(read("-first.txt"), b"a\r\nb\r\n");
            assert_eq!(read("d/y.u"), b"a\0\n\0b\0\n\0");
            assert!(read("e.id").starts_with(b"$Id: "));
            assert_eq!(read("run"), b"a\nb\n");
            assert_eq!(std::fs::metadata(into.join("run")).unwrap().permissions().mode() & 0o111, 0o111);
            assert_eq!(std::fs::read_link(into.join("l")).unwrap().to_str(), Some("x.txt"));
            assert!(into.join("sub").is_dir());
            let beside: Vec<_> = std::fs::read_dir(f.temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert!(!beside.iter().any(|name| name.to_string_lossy().contains("git-index")), "{beside:?}");
            assert!(!f.path.join("index").exists());
            assert!(f.repo.checkout_with_git(&commit, &into).is_err());
        });
    }
}
