//! The statements that are prepared on one connection.
//!
//! By their text, and no more than so many: the one that was used longest ago makes room. To find it, all are looked
//! at, which happens only when another one is prepared, and is nothing beside the two trips that this takes.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use foldhash::fast::RandomState;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Statement};

use crate::sync::{Mutex, lock};

/// A longer text is prepared anew whenever it is used. It is likely to be another one each time.
pub(super) const LONGEST_TEXT: usize = 32 * 1024;

/// Statements that change nothing that outlives them, by their first word.
const PLAIN: [&str; 9] =
    ["select", "with", "insert", "update", "delete", "merge", "values", "table", "explain"];

/// The statements of one connection.
pub(super) struct Statements {
    capacity: usize,
    kept: Mutex<Kept>,
    prepared: AtomicU64,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<Box<str>, Entry, RandomState>,
    /// Counts uses, to tell which came last.
    uses: u64,
}

struct Entry {
    cell: Cell,
    used: u64,
}

/// A statement that is being prepared, or has been: by one, for everybody who asks for it.
pub(super) type Cell = Arc<OnceCell<Prepared>>;

#[derive(Clone)]
pub(super) struct Prepared {
    pub(super) statement: Statement,
    /// Whether it leaves the session as it was.
    pub(super) is_plain: bool,
}

impl Statements {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, kept: Mutex::default(), prepared: AtomicU64::new(0) }
    }

    /// The place of a statement, which may still be empty.
    pub(super) fn cell(&self, sql: &str) -> Cell {
        if self.capacity == 0 || sql.len() > LONGEST_TEXT {
            return Cell::default();
        }
        let mut left = None;
        let mut kept = lock(&self.kept);
        kept.uses += 1;
        let used = kept.uses;
        if let Some(entry) = kept.entries.get_mut(sql) {
            entry.used = used;
            return Arc::clone(&entry.cell);
        }
        if kept.entries.len() >= self.capacity {
            left = kept.evict();
        }
        let cell = Cell::default();
        kept.entries.insert(sql.into(), Entry { cell: Arc::clone(&cell), used });
        drop(kept);
        // The last clone of a statement tells the server to forget it, which is done without the lock.
        drop(left);
        cell
    }

    /// Prepares what nobody has prepared yet.
    pub(super) async fn prepare(
        &self,
        cell: &Cell,
        client: &Client,
        sql: &str,
    ) -> Result<Prepared, tokio_postgres::Error> {
        let prepare = async || {
            self.prepared.fetch_add(1, Ordering::Relaxed);
            let statement = client.prepare(sql).await?;
            Ok(Prepared { statement, is_plain: is_plain(sql) })
        };
        cell.get_or_try_init(prepare).await.cloned()
    }

    /// Forgets a statement, unless it was prepared anew meanwhile.
    pub(super) fn forget(&self, sql: &str, cell: &Cell) {
        let mut kept = lock(&self.kept);
        if kept.entries.get(sql).is_some_and(|entry| Arc::ptr_eq(&entry.cell, cell)) {
            let left = kept.entries.remove(sql);
            drop(kept);
            drop(left);
        }
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.kept).entries.len()
    }

    /// How many were sent to the server to be prepared.
    pub(super) fn prepared(&self) -> u64 {
        self.prepared.load(Ordering::Relaxed)
    }
}

impl Kept {
    /// Takes out what was used longest ago.
    fn evict(&mut self) -> Option<Entry> {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
        let sql = oldest.map(|(sql, _)| sql.clone())?;
        self.entries.remove(&sql)
    }
}

/// Whether a statement is of a kind that leaves no transaction open and no setting behind, by its first word. A
/// function may do the latter in spite of it.
fn is_plain(sql: &str) -> bool {
    let sql = sql.trim_start();
    let word = sql.split(|character: char| !character.is_ascii_alphabetic()).next().unwrap_or_default();
    PLAIN.iter().any(|plain| plain.eq_ignore_ascii_case(word))
}

impl fmt::Debug for Statements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Texts may hold values that somebody did not pass as parameters.
        f.debug_struct("Statements").field("capacity", &self.capacity).field("len", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(statements: &Statements) -> Vec<String> {
        let mut texts: Vec<_> = lock(&statements.kept).entries.keys().map(|sql| sql.to_string()).collect();
        texts.sort();
        texts
    }

    #[test]
    fn no_more_than_the_capacity_is_kept_and_what_was_used_longest_ago_goes() {
        let statements = Statements::new(2);
        let one = statements.cell("select 1");
        statements.cell("select 2");
        assert!(Arc::ptr_eq(&one, &statements.cell("select 1")), "the same place for the same text");
        statements.cell("select 3");
        assert_eq!(texts(&statements), ["select 1", "select 3"]);
        for number in 0..1_000 {
            statements.cell(&format!("select {number}"));
            assert!(statements.len() <= 2);
        }
    }

    #[test]
    fn long_texts_and_those_of_a_cache_of_nothing_are_not_kept() {
        let statements = Statements::new(2);
        statements.cell(&" ".repeat(LONGEST_TEXT + 1));
        assert_eq!(statements.len(), 0);
        let none = Statements::new(0);
        none.cell("select 1");
        assert_eq!(none.len(), 0);
    }

    #[test]
    fn what_was_made_anew_is_not_forgotten_with_the_old() {
        let statements = Statements::new(2);
        let old = statements.cell("select 1");
        statements.forget("select 1", &old);
        let new = statements.cell("select 1");
        assert!(!Arc::ptr_eq(&old, &new));
        statements.forget("select 1", &old);
        assert_eq!(statements.len(), 1);
    }

    #[test]
    fn statements_that_may_leave_something_behind_are_told_by_their_first_word() {
        for plain in
            ["select 1", " SELECT(1)", "\n\twith a as (select 1) table a", "Insert into a values (1)"]
        {
            assert!(is_plain(plain), "{plain}");
        }
        for other in
            ["begin", "SET a = 1", "", ";select 1", "/* select */ begin", "selects", "listen a", "(select 1)"]
        {
            assert!(!is_plain(other), "{other}");
        }
    }
}
