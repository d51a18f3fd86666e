//! Which parts of a bench are run.

use anyhow::{Result, bail};

/// Those that are named, by their name or by that of the group before the point; all of them unless some are.
pub fn chosen<P: Copy>(parts: &[(&'static str, P)], names: &[&str]) -> Result<Vec<P>> {
    let is_named = |part: &str, name: &str| part == name || part.split('.').next() == Some(name);
    if let Some(unknown) = names.iter().find(|name| !parts.iter().any(|(part, _)| is_named(part, name))) {
        let known: Vec<&str> = parts.iter().map(|(part, _)| *part).collect();
        bail!("which part? {known:?}, not {unknown:?}");
    }
    let is_chosen = |part: &str| names.is_empty() || names.iter().any(|name| is_named(part, name));
    Ok(parts.iter().filter(|(part, _)| is_chosen(part)).map(|(_, run)| *run).collect())
}
