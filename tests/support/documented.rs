//! The metrics that the guide's page tells of.

use std::collections::{BTreeMap, BTreeSet};

const PAGE: &str = include_str!("../../src/guide/metrics.md");

/// A row of a table: the name and the kind of a metric, and what is in the next column.
type Row = [&'static str; 3];

/// The metrics whose names begin with `prefix`.
pub fn metrics(prefix: &str) -> Vec<Row> {
    let rows = PAGE.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.strip_suffix('`').filter(|name| name.starts_with(prefix))?;
        Some([name, cells.next()?, cells.next()?])
    });
    rows.collect()
}

/// Their names and kinds, with the labels that they have besides that of their owner.
pub fn kinds(prefix: &str) -> BTreeMap<String, &'static str> {
    let kinds = metrics(prefix).into_iter().flat_map(|[name, kind, _]| {
        let reasons = if name.ends_with("_closed_total") { reasons(name) } else { BTreeSet::from([""]) };
        let label =
            |reason: &str| if reason.is_empty() { String::new() } else { format!(" reason={reason}") };
        reasons.into_iter().map(move |reason| (format!("{name}{}", label(reason)), kind))
    });
    kinds.collect()
}

/// The rows of the first table of reasons after that one.
fn reasons(name: &str) -> BTreeSet<&'static str> {
    let after = PAGE.split(name).nth(1).unwrap();
    let table = after.split("| `reason` |").nth(1).unwrap().split("\n\n").next().unwrap();
    table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
}
