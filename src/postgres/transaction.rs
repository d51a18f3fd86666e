//! Transactions that cannot be left open.

use std::{
    fmt,
    fmt::Write,
    ops::Deref,
    panic::Location,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio_postgres::{Client, IsolationLevel, Row, types::ToSql};

use super::{
    connection::{PostgresConnection, one},
    line::{Answer, DIRTY, OPEN, Parameters, ROLLBACK, Scope, USED},
};
use crate::{Error, clock::Instant};

const COMMIT: &str = "commit";
/// Fails if an earlier statement has failed, where `commit` alone rolls back and reports success.
const COMMIT_UNLESS_FAILED: &str = "select; commit";

/// Marks doubts that nothing takes away.
const UNKNOWN: u32 = 1 << 31;

/// How a transaction differs from what the server's settings say.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct TransactionOptions {
    isolation_level: Option<IsolationLevel>,
    is_read_only: bool,
    is_deferrable: bool,
}

/// An open transaction on a [`PostgresConnection`], begun by its [`transaction`](PostgresConnection::transaction).
///
/// Rolled back when it is dropped, unless it was committed: the rollback is sent at once, and nobody uses the
/// connection before it was answered.
///
/// It derefs to the driver's client, as the connection does. Do not end the transaction there, or in a batch: what
/// follows would be outside of it.
///
/// # Cancel safety
///
/// As for the connection. A statement that was cancelled has failed, and with it the transaction, which then refuses
/// to be committed.
#[must_use = "it is rolled back when it is dropped"]
pub struct Transaction<'a> {
    connection: &'a mut PostgresConnection,
    scope: Scope,
    place: &'static Location<'static>,
    began: Instant,
    is_over: bool,
    /// How many statements have not ended well, or not at all; any of them may have failed the transaction.
    doubts: AtomicU32,
}

impl TransactionOptions {
    /// As the server's settings say.
    pub fn new() -> Self {
        Self::default()
    }

    /// What it sees of others.
    pub fn isolation_level(mut self, level: IsolationLevel) -> Self {
        self.isolation_level = Some(level);
        self
    }

    /// Writes are refused. That they are is then no sign of a server that became a standby.
    pub fn read_only(mut self) -> Self {
        self.is_read_only = true;
        self
    }

    /// With `serializable` and `read_only`: waits for a snapshot that cannot fail.
    pub fn deferrable(mut self) -> Self {
        self.is_deferrable = true;
        self
    }

    fn sql(self) -> String {
        let mut sql = "begin".to_owned();
        let level = self.isolation_level.map(|level| match level {
            IsolationLevel::ReadUncommitted => "read uncommitted",
            IsolationLevel::RepeatableRead => "repeatable read",
            IsolationLevel::Serializable => "serializable",
            // The driver's list may grow; this is the server's default.
            _ => "read committed",
        });
        if let Some(level) = level {
            let _ = write!(sql, " isolation level {level}");
        }
        if self.is_read_only {
            sql.push_str(" read only");
        }
        if self.is_deferrable {
            sql.push_str(" deferrable");
        }
        sql
    }
}

impl<'a> Transaction<'a> {
    pub(super) async fn begin(
        connection: &'a mut PostgresConnection,
        options: TransactionOptions,
        place: &'static Location<'static>,
    ) -> Result<Self, Error> {
        let scope = Scope::InTransaction { is_read_only: options.is_read_only };
        let began = connection.0.settings().clock.now();
        // Before it begins: dropped from here on, it is rolled back.
        let doubts = AtomicU32::new(0);
        let mut this = Self { connection, scope, place, began, is_over: false, doubts };
        let begun = this.batch("begin", &options.sql(), USED | OPEN).await;
        if begun.is_err() {
            this.is_over = true;
            this.connection.0.closed();
        }
        begun.map(|()| this)
    }

    /// Makes what was done last.
    ///
    /// # Errors
    ///
    /// [`Refused`](crate::ErrorKind::Refused) if an earlier statement failed, or a constraint that was deferred: the
    /// transaction is rolled back. [`Disconnected`](crate::ErrorKind::Disconnected) if the connection broke before
    /// the answer came: then it was committed or not. [`Unavailable`](crate::ErrorKind::Unavailable) if the server gave it
    /// up for another one, as when it cannot be serialized: it is rolled back, and may be tried again from its beginning.
    /// [`TimedOut`](crate::ErrorKind::TimedOut) if the server cancelled it.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it was committed or not, and wholly. The server is given a second before it is cancelled.
    pub async fn commit(mut self) -> Result<(), Error> {
        let is_certain = *self.doubts.get_mut() == 0;
        self.batch("commit", if is_certain { COMMIT } else { COMMIT_UNLESS_FAILED }, USED).await?;
        self.ended("committed");
        Ok(())
    }

    /// Undoes what was done, and waits until that has happened. To drop the transaction is enough, too.
    ///
    /// # Errors
    ///
    /// [`Disconnected`](crate::ErrorKind::Disconnected) if the connection broke; what was done is undone all the same.
    pub async fn rollback(mut self) -> Result<(), Error> {
        self.batch("rollback", ROLLBACK, USED).await?;
        self.ended("rolled back");
        Ok(())
    }

    /// As [`PostgresConnection::query_cached`], within the transaction.
    ///
    /// # Errors
    ///
    /// The same. After an error the server refuses every statement but a rollback, also to a savepoint.
    pub async fn query_cached(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        self.run(sql, parameters).await
    }

    /// As [`PostgresConnection::query_opt_cached`], within the transaction.
    ///
    /// # Errors
    ///
    /// As for [`query_cached`](Self::query_cached).
    pub async fn query_opt_cached(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Error> {
        self.run(sql, parameters).await
    }

    /// As [`PostgresConnection::query_one_cached`], within the transaction.
    ///
    /// # Errors
    ///
    /// As for [`query_cached`](Self::query_cached).
    pub async fn query_one_cached(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, Error> {
        one(self.run(sql, parameters).await?)
    }

    /// As [`PostgresConnection::execute_cached`], within the transaction.
    ///
    /// # Errors
    ///
    /// As for [`query_cached`](Self::query_cached).
    pub async fn execute_cached(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        self.run(sql, parameters).await
    }

    /// As [`PostgresConnection::batch_execute`], within the transaction: for `savepoint` and `set local`.
    ///
    /// # Errors
    ///
    /// As for [`query_cached`](Self::query_cached).
    pub async fn batch_execute(&self, sql: &str) -> Result<(), Error> {
        self.batch("batch", sql, USED | DIRTY).await
    }

    async fn run<A: Answer>(&self, sql: &str, parameters: Parameters<'_>) -> Result<A, Error> {
        self.doubts.fetch_add(1, Ordering::Relaxed);
        let answer = self.connection.0.run(sql, parameters, self.scope).await?;
        self.doubts.fetch_sub(1, Ordering::Relaxed);
        Ok(answer)
    }

    async fn batch(&self, operation: &'static str, sql: &str, traces: u8) -> Result<(), Error> {
        self.doubts.fetch_add(1, Ordering::Relaxed);
        self.connection.0.batch(operation, sql, traces, self.scope).await?;
        self.doubts.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    fn ended(&mut self, how: &'static str) {
        self.is_over = true;
        self.connection.0.closed();
        self.log(how);
    }

    fn log(&self, how: &'static str) {
        let settings = self.connection.0.settings();
        let Some(slow) = settings.slow_transaction else { return };
        let open = settings.clock.now().since(self.began);
        if open >= slow {
            tracing::warn!(place = %self.place, ?open, how, "postgres: a transaction was open for long");
        }
    }
}

/// The driver's client; the connection counts as dirty once it was asked for.
impl Deref for Transaction<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.doubts.fetch_or(UNKNOWN, Ordering::Relaxed);
        self.connection.0.raw()
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.connection.0.roll_back();
            self.log("dropped");
        }
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("place", &format_args!("{}", self.place))
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_in_the_order_that_the_server_reads() {
        assert_eq!(TransactionOptions::new().sql(), "begin");
        let all =
            TransactionOptions::new().deferrable().read_only().isolation_level(IsolationLevel::Serializable);
        assert_eq!(all.sql(), "begin isolation level serializable read only deferrable");
    }
}
