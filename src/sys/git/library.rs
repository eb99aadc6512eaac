//! Reading through libgit2.

use crate::sys::error::{Context, Error, Result};
use crate::sys::names::{ObjectId, RefName};

use super::object::{Header, ObjectKind};

/// Kind and size of objects; `None` for those that are not here.
///
/// # Errors
/// If the object database cannot be read.
pub fn headers(repository: &git2::Repository, ids: &[&ObjectId]) -> Result<Vec<Option<Header>>> {
    let odb = repository.odb().context(|| doing("read the objects of", repository))?;
    ids.iter()
        .map(|id| {
            let Some(oid) = to_oid(id) else { return Ok(None) };
            match odb.read_header(oid) {
                Ok((size, kind)) => {
                    let kind =
                        kind_of(kind).ok_or_else(|| Error::failed(format!("object {id} is of no known kind")))?;
                    Ok(Some(Header { kind, size: size as u64 }))
                }
                Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
                Err(error) => Err(error).context(|| format!("cannot read object {}", id.short())),
            }
        })
        .collect()
}

/// The raw content of an object; libgit2 checks it against the id.
///
/// # Errors
/// If it is missing or damaged.
pub fn read(repository: &git2::Repository, id: &ObjectId) -> Result<Vec<u8>> {
    let damaged = || format!("cannot read object {}", id.short());
    let oid = to_oid(id).ok_or_else(|| Error::failed(damaged()))?;
    let odb = repository.odb().context(damaged)?;
    let object = odb.read(oid).context(damaged)?;
    Ok(object.data().to_vec())
}

/// The object that a ref names, symbolic refs followed.
///
/// # Errors
/// If the ref cannot be read.
pub fn read_ref(repository: &git2::Repository, name: &str) -> Result<Option<ObjectId>> {
    let found = repository.find_reference(name).and_then(|reference| reference.resolve());
    match found {
        Ok(reference) => reference.target().map(|oid| from_oid(&oid)).transpose(),
        Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("cannot read ref {}", crate::sys::escape::visible(name))),
    }
}

/// Whether a ref names another ref.
pub fn is_symbolic(repository: &git2::Repository, name: &str) -> bool {
    repository.find_reference(name).is_ok_and(|reference| reference.kind() != Some(git2::ReferenceType::Direct))
}

/// All refs whose names begin with `prefix` and are valid text.
///
/// # Errors
/// If the refs cannot be read.
pub fn refs(repository: &git2::Repository, prefix: &str) -> Result<Vec<(RefName, ObjectId)>> {
    let cannot = || doing("list the refs of", repository);
    let mut found = Vec::new();
    for reference in repository.references().context(cannot)? {
        let reference = reference.context(cannot)?;
        let Some(name) = std::str::from_utf8(reference.name_bytes()).ok().filter(|name| name.starts_with(prefix))
        else {
            continue;
        };
        let (Ok(name), Some(id)) = (name.parse::<RefName>(), read_ref(repository, name)?) else { continue };
        found.push((name, id));
    }
    Ok(found)
}

/// The ids of at most `limit` commits that lead to `to` and not to `not`, newest first.
///
/// # Errors
/// If a commit is missing.
pub fn log(
    repository: &git2::Repository,
    to: &ObjectId,
    not: Option<&ObjectId>,
    limit: usize,
) -> Result<Vec<ObjectId>> {
    let cannot = || format!("cannot list the commits of {}", to.short());
    let oid = |id: &ObjectId| to_oid(id).ok_or_else(|| Error::failed(cannot()));
    let mut walk = repository.revwalk().context(cannot)?;
    walk.push(oid(to)?).context(cannot)?;
    if let Some(not) = not {
        walk.hide(oid(not)?).context(cannot)?;
    }
    walk.take(limit).map(|oid| from_oid(&oid.context(cannot)?)).collect()
}

/// Whether the commit `old` leads to the commit `new`; they are not the same.
///
/// # Errors
/// If a commit is missing.
pub fn is_ancestor(repository: &git2::Repository, old: &ObjectId, new: &ObjectId) -> Result<bool> {
    let (Some(old), Some(new)) = (to_oid(old), to_oid(new)) else { return Ok(false) };
    repository.graph_descendant_of(new, old).context(|| doing("compare two commits of", repository))
}

/// The object whose id begins with `prefix`; `None` if there is none.
///
/// # Errors
/// If there are several.
pub fn by_prefix(repository: &git2::Repository, prefix: &str) -> Result<Option<ObjectId>> {
    let oid = git2::Oid::from_str(prefix).context(|| format!("cannot look up {prefix}"))?;
    let odb = repository.odb().context(|| doing("read the objects of", repository))?;
    match odb.exists_prefix(oid, prefix.len()) {
        Ok(oid) => from_oid(&oid).map(Some),
        Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
        Err(error) if error.code() == git2::ErrorCode::Ambiguous => Err(super::history::ambiguous(prefix)),
        Err(error) => Err(error).context(|| format!("cannot look up {prefix}")),
    }
}

fn to_oid(id: &ObjectId) -> Option<git2::Oid> {
    (id.as_str().len() == super::ObjectFormat::Sha1.digits()).then(|| git2::Oid::from_str(id.as_str()).ok()).flatten()
}

fn from_oid(oid: &git2::Oid) -> Result<ObjectId> {
    oid.to_string().parse()
}

fn kind_of(kind: git2::ObjectType) -> Option<ObjectKind> {
    ObjectKind::parse(kind.str())
}

fn doing(what: &str, repository: &git2::Repository) -> String {
    format!("cannot {what} {}", repository.path().display())
}
