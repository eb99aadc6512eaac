//! Templates: files of the candidate that are made from the configuration, on each node anew. They are part of a release, so a
//! rollback brings them back, and no part of a deliverable.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::{Map, Value};

use super::checkout::directory;
use super::draft::{Draft, Version};
use super::halt::{Halt, Step};
use super::settle::with_contents;
use super::site::{Rights, Site};
use crate::project::pillar::template::render_file;
use crate::project::recipe::{Template, TemplateOwner};
use crate::sys::dir::{Dir, FileKind};
use crate::sys::error::{Context, Error, Result};
use crate::sys::path::TreePath;
use crate::sys::{fs, machine};
use crate::tree::manifest::{Content, Entry, Manifest, Stamp};
use crate::tree::scan::Own;
use crate::tree::store::Store;
use crate::tree::sync::now_ns;

impl Draft<'_> {
    /// The tree with what its templates make of the configuration.
    ///
    /// # Errors
    /// If a template is not there or invalid, or what it makes is in the tree already: nothing was changed.
    pub fn with_templates(&self, next: &Version, manifest: Manifest, store: &Store) -> Step<Manifest> {
        if next.recipe.templates.is_empty() {
            return Ok(manifest);
        }
        if self.builds_in_run {
            return Err(Halt::refused("templates are not available where the build happens in run")
                .hint("take `in_place: allow` out of the recipe, or write the files in a configure step"));
        }
        let mut put = BTreeMap::new();
        for template in &next.recipe.templates {
            if let Some(there) = manifest.get(&template.to) {
                return Err(in_the_way(template, &there.path));
            }
            let source = manifest.get(&template.from).filter(|entry| matches!(entry.content, Content::File { .. }));
            let source = source.ok_or_else(|| missing(template))?;
            let text = self.rendered(next, template, &content_of(self.site, &manifest, source)?)?;
            let (hash, size) = store.add(&mut text.as_bytes())?;
            let made = Entry {
                path: template.to.clone(),
                mode: template.mode,
                owner: owner_of(self.site, template),
                mtime: now_ns(),
                content: Content::File { size, hash },
                hard_link: None,
                xattrs: Vec::new(),
                blob: None,
                stamp: Stamp::default(),
            };
            for path in template.to.ancestors().take_while(|path| manifest.get(path).is_none()) {
                put.entry(path.clone()).or_insert_with(|| directory(path, now_ns()));
            }
            put.insert(made.path.clone(), made);
        }
        Ok(manifest.with(put.into_values().collect(), &[])?)
    }

    /// The same in the clone of editable mode: the files are written there, and git does not know them.
    ///
    /// # Errors
    /// As [`Draft::with_templates`], and if one cannot be written.
    pub fn make_templates_in_clone(&self) -> Step {
        let next = &self.next;
        if next.recipe.templates.is_empty() {
            return Ok(());
        }
        let run = Dir::open_real(&self.site.place.run())?;
        for template in &next.recipe.templates {
            if self.repo.has_entry(&next.commit.id, &template.to)? {
                return Err(in_the_way(template, &template.to));
            }
            let is_file = run.stat(template.from.as_path())?.is_some_and(|meta| meta.kind == FileKind::File);
            if !is_file {
                return Err(missing(template));
            }
            let mut bytes = Vec::new();
            let file = run.open_file(template.from.as_path())?;
            file.take(fs::CONFIG_LIMIT + 1)
                .read_to_end(&mut bytes)
                .context(|| format!("cannot read {}", template.from))?;
            let text = self.rendered(next, template, &bytes)?;
            write_in(&run, self.site.own, template, &text)?;
        }
        Ok(())
    }

    fn rendered(&self, next: &Version, template: &Template, bytes: &[u8]) -> Step<String> {
        let name = template.from.to_string();
        if bytes.len() as u64 > fs::CONFIG_LIMIT {
            return Err(Error::invalid(format!("{name}: the template is larger than 1 MiB")).into());
        }
        let text =
            std::str::from_utf8(bytes).map_err(|_| Error::invalid(format!("{name}: the template is not UTF-8")))?;
        let place = &self.site.place;
        let mut mc = Map::new();
        for (key, value) in [
            ("project", place.name().to_string()),
            ("environment", self.site.config.environment.name().to_string()),
            ("mode", next.mode.name().to_string()),
            ("commit", next.commit.id.to_string()),
            ("run", place.run().display().to_string()),
            ("data", place.data().display().to_string()),
        ] {
            mc.insert(key.to_string(), Value::String(value));
        }
        Ok(render_file(&name, text, &next.pillar, machine::grains()?, &mc)?)
    }
}

fn in_the_way(template: &Template, there: &TreePath) -> Halt {
    Halt::refused(format!("`{there}` is made from `{}`, but it is in the tree already", template.from))
        .hint(format!("git rm --cached {there}, or let `to:` name another file"))
}

fn missing(template: &Template) -> Halt {
    Halt::refused(format!("the recipe names the template `{}`, which is no file of the tree", template.from))
}

/// What a file of root's is on a node where root and the project are two.
fn owner_of(site: &Site, template: &Template) -> Option<(u32, u32)> {
    match (&site.rights, template.owner) {
        (Rights::Separate { project, .. }, TemplateOwner::Root) => Some((0, project.gid)),
        _ => None,
    }
}

fn content_of(site: &Site, manifest: &Manifest, entry: &Entry) -> Result<Vec<u8>> {
    let Some(hash) = entry.hash() else { return Ok(Vec::new()) };
    let mut scratch = fs::memory_file("template")?;
    with_contents(site, &[manifest], |supply| supply.copy(&hash, &mut scratch))?;
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut scratch)
        .and_then(|()| scratch.take(fs::CONFIG_LIMIT + 1).read_to_end(&mut bytes))
        .context(|| format!("cannot read {}", entry.path))?;
    Ok(bytes)
}

/// Writes a file below a directory of the project's: no link is followed, and the old one stands until the new one is whole.
fn write_in(run: &Dir, own: Own, template: &Template, text: &str) -> Result<()> {
    let mut parent = run.again()?;
    let mut names: Vec<_> = template.to.as_path().components().map(|name| name.as_os_str().to_os_string()).collect();
    let Some(name) = names.pop() else { return Ok(()) };
    for name in names {
        let is_new = parent.stat(Path::new(&name))?.is_none();
        parent = parent.ensure_dir(Path::new(&name), 0o755)?;
        if is_new {
            parent.give_to(own.uid, own.gid)?;
        }
    }
    let temporary = format!(".mc_project.{}", uuid::Uuid::now_v7());
    let mut file = parent.create_file(Path::new(&temporary), 0o600)?;
    let written = file.write_all(text.as_bytes()).context(|| format!("cannot write {}", template.to));
    let finished = written.and_then(|()| {
        fs::give_file(&file, own.uid, own.gid, template.mode)?;
        parent.rename(Path::new(&temporary), &parent, Path::new(&name))
    });
    finished.inspect_err(|_| drop(parent.unlink(Path::new(&temporary))))
}
