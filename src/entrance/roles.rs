//! Who may do what from afar: the one place where root looks it up.

use crate::entrance::serve::Need;
use crate::pipeline::site::Node;
use crate::project::ids::ProjectName;
use crate::sys::error::Result;

/// What the node's own list of people lets this person do with this project; `None`: nothing.
///
/// # Errors
/// If the list cannot be read.
pub fn granted(_node: &Node, _person: &str, _project: &ProjectName) -> Result<Option<Need>> {
    Ok(None)
}
