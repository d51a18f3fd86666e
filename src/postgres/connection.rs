//! What a pool of PostgreSQL connections lends.

use std::{fmt, ops::Deref, panic::Location, sync::Arc};

use tokio_postgres::{Client, Row, types::ToSql};

use super::{
    line::{Answer, DIRTY, Line, Parameters, Scope, USED},
    statements::Prepared,
    transaction::{Transaction, TransactionOptions},
};
use crate::{Error, ErrorKind};

/// A connection to PostgreSQL, made by a [`PostgresManager`](super::PostgresManager) and lent by a pool.
///
/// Its own methods are for most of what a program does: statements that are prepared once for each connection,
/// transactions that cannot be left open, errors that say what a program can do about them. They take `&self`, and
/// several at once on one connection are sent without waiting for each other's answers, as the driver does.
///
/// It derefs to the driver's client for everything else: `COPY`, streams of rows, portals. Nothing is known of what
/// is asked there, so the connection counts as dirty from then on (see [`ResetPolicy`](super::ResetPolicy)), and nothing
/// waits there for what an earlier call has left: await [`reset`](Self::reset) first if there may be such a call.
///
/// # Cancel safety
///
/// Every method may be dropped at any time. What it asked is given ten milliseconds to end by itself and is then
/// cancelled on the server, in the background. Whoever uses the connection next, in the same checkout or a later one,
/// waits for that; if it takes too long the connection is given up. Whether the statement was carried out is not
/// known then.
///
/// While others wait for answers on the same connection nothing is cancelled on it, because theirs may be struck: what
/// was left goes on until they are served, and if it is ahead of them, they wait for its end or its
/// [time-out](super::PostgresManagerBuilder::statement_timeout).
///
/// What still runs on a connection that is closed, for whatever reason, is cancelled in the same way before it is hung
/// up on: a moment, and no longer than a few seconds where the cancellation comes to nothing. Until then a pool of
/// [`PostgresManager::pool`](super::PostgresManager::pool) opens no other one in its place if it is as large as it may
/// be; one of bb8 alone does, and the server has one more than the pool counts.
///
/// # Examples
///
/// ```no_run
/// use mcp_perf::postgres::PostgresManager;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let manager = PostgresManager::builder("postgres://server@127.0.0.1/server")?.build()?;
/// let pool = bb8::Pool::builder().max_size(8).build(manager).await?;
///
/// let mut connection = pool.get().await?;
/// let rows = connection.query_cached("select name from servers where id = $1", &[&7_i64]).await?;
///
/// let transaction = connection.transaction().await?;
/// transaction.execute_cached("update servers set seen = now() where id = $1", &[&7_i64]).await?;
/// transaction.commit().await?; // or it is rolled back
/// # let _ = rows; Ok(()) }
/// ```
pub struct PostgresConnection(pub(super) Arc<Line>);

impl PostgresConnection {
    /// Runs a query whose statement is prepared on this connection when it is first asked for, and kept.
    ///
    /// Up to [`statement_cache`](super::PostgresManagerBuilder::statement_cache) statements are kept, by their text:
    /// values belong into `parameters`. Longer ones than 32 KiB are not. Many who ask for the same new text at once have it prepared once. A
    /// statement that the server has forgotten, or whose plan no longer fits its tables, is prepared anew and asked
    /// once more, outside transactions.
    ///
    /// # Errors
    ///
    /// [`Refused`](crate::ErrorKind::Refused) with the driver's error (`tokio_postgres::Error`, whose `code` is the
    /// SQLSTATE) as the source, also if a parameter is not of the type that the statement wants;
    /// [`Disconnected`](crate::ErrorKind::Disconnected) if the connection broke, in which case the statement may
    /// have been carried out; [`TimedOut`](crate::ErrorKind::TimedOut) if the server cancelled it;
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if it gave it up for another one, as after a deadlock.
    pub async fn query_cached(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        self.0.run(sql, parameters, Scope::Alone).await
    }

    /// The same for a query that answers with one row or none.
    ///
    /// # Errors
    ///
    /// As for [`query_cached`](Self::query_cached), and [`Refused`](crate::ErrorKind::Refused) if there are more
    /// rows.
    pub async fn query_opt_cached(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Error> {
        self.0.run(sql, parameters, Scope::Alone).await
    }

    /// The same for a query that answers with one row.
    ///
    /// # Errors
    ///
    /// As for [`query_cached`](Self::query_cached), and [`Refused`](crate::ErrorKind::Refused) if there is another
    /// number of rows.
    pub async fn query_one_cached(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, Error> {
        one(self.0.run(sql, parameters, Scope::Alone).await?)
    }

    /// The same for a statement of which only the number of rows it changed is of interest.
    ///
    /// # Errors
    ///
    /// As for [`query_cached`](Self::query_cached).
    pub async fn execute_cached(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        self.0.run(sql, parameters, Scope::Alone).await
    }

    /// Runs statements, separated by semicolons, in the text protocol. Never put values into them.
    ///
    /// What they leave open or changed is not known, so the connection counts as dirty.
    ///
    /// # Errors
    ///
    /// As for [`query_cached`](Self::query_cached). What came before the statement that failed has happened or not,
    /// as the page of PostgreSQL's simple query protocol says.
    pub async fn batch_execute(&self, sql: &str) -> Result<(), Error> {
        self.0.batch("batch", sql, USED | DIRTY, Scope::Alone).await
    }

    /// Begins a transaction, which is rolled back unless it is [committed](Transaction::commit).
    ///
    /// One that is open for longer than [`slow_transaction`](super::PostgresManagerBuilder::slow_transaction) is
    /// logged with the place of this call.
    ///
    /// # Errors
    ///
    /// As for [`query_cached`](Self::query_cached).
    #[track_caller]
    pub fn transaction(&mut self) -> impl Future<Output = Result<Transaction<'_>, Error>> + Send {
        let place = Location::caller();
        Transaction::begin(self, TransactionOptions::default(), place)
    }

    /// Begins a transaction that is not as the server's settings say.
    ///
    /// ```no_run
    /// # use mcp_perf::postgres::{PostgresConnection, TransactionOptions};
    /// use tokio_postgres::IsolationLevel;
    ///
    /// # async fn report(connection: &mut PostgresConnection) -> Result<(), mcp_perf::Error> {
    /// let snapshot = TransactionOptions::new().isolation_level(IsolationLevel::RepeatableRead).read_only();
    /// let transaction = connection.transaction_with(snapshot).await?;
    /// # transaction.commit().await }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`query_cached`](Self::query_cached).
    #[track_caller]
    pub fn transaction_with(
        &mut self,
        options: TransactionOptions,
    ) -> impl Future<Output = Result<Transaction<'_>, Error>> + Send {
        let place = Location::caller();
        Transaction::begin(self, options, place)
    }

    /// Cancels what runs on this connection right now, if anything does, for whoever asked for it, who gets an error of
    /// kind [`TimedOut`](crate::ErrorKind::TimedOut). The future may be awaited in another task, and does nothing before,
    /// nor once the connection was [reset](Self::reset) or returned to its pool. Returns whether it is certain that the cancellation is over; where
    /// it is not, one that comes late may strike what you ask next, and nobody else: the connection is closed when it is
    /// returned. A caller who has gone needs none of this.
    ///
    /// The driver's own, by `cancel_token`, knows no address of connections that this crate has made.
    ///
    /// ```no_run
    /// # use mcp_perf::postgres::PostgresConnection;
    /// # async fn report(connection: &PostgresConnection) -> Result<(), mcp_perf::Error> {
    /// let cancel = connection.cancel();
    /// tokio::spawn(async move {
    ///     tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    ///     cancel.await
    /// });
    /// connection.query_cached("select pg_sleep(60)", &[]).await?;
    /// # Ok(()) }
    /// ```
    pub fn cancel(&self) -> impl Future<Output = bool> + Send + use<> {
        self.0.cancel_own()
    }

    /// Gives the connection up: the pool closes it when it is returned, and no call is made on it any more.
    pub fn retire(&self) {
        self.0.retire();
    }

    /// Whether the connection has ended, was given up, or is older than the last time the server went down. The pool
    /// closes it when it is returned. While a call on it was begun and is not polled, its end is not heard of.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.is_over()
    }

    /// Whether nothing that an earlier call or user has left is being undone any more. If it still is, the next call
    /// waits for it, except on the driver's client.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.is_fit()
    }

    /// Whether it will be reset when it is returned, or, with [`ResetPolicy::None`](super::ResetPolicy::None), waited for
    /// until nothing runs on it any more.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.0.is_dirty()
    }

    /// Resets it now instead of when it is returned, and waits until that is done. Does nothing unless it
    /// [is dirty](Self::is_dirty).
    ///
    /// # Errors
    ///
    /// [`Disconnected`](crate::ErrorKind::Disconnected) if it was given up because that failed or took too long.
    pub async fn reset(&mut self) -> Result<(), Error> {
        self.0.let_go();
        self.0.fit().await
    }

    /// How many statements are kept prepared.
    #[must_use]
    pub fn statements(&self) -> usize {
        self.0.statements.len()
    }

    /// How many statements were sent to the server to be prepared since the connection was made.
    #[must_use]
    pub fn prepared(&self) -> u64 {
        self.0.statements.prepared()
    }
}

/// The driver's client; the connection counts as dirty once it was asked for.
impl Deref for PostgresConnection {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.0.raw()
    }
}

impl Drop for PostgresConnection {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for PostgresConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresConnection").field(&self.0).finish()
    }
}

/// The row of a query that was to have one. That there is none is known at the end of the answer, where the driver's own
/// `query_one` tells it as it tells of a row too many, before the end.
pub(super) fn one(row: Option<Row>) -> Result<Row, Error> {
    row.ok_or_else(|| Error::new(ErrorKind::Refused, "postgres refused (query): there is no row"))
}

impl Answer for Vec<Row> {
    async fn ask(
        client: &Client,
        prepared: &Prepared,
        parameters: Parameters<'_>,
    ) -> Result<Self, tokio_postgres::Error> {
        client.query(&prepared.statement, parameters).await
    }
}

impl Answer for Option<Row> {
    async fn ask(
        client: &Client,
        prepared: &Prepared,
        parameters: Parameters<'_>,
    ) -> Result<Self, tokio_postgres::Error> {
        client.query_opt(&prepared.statement, parameters).await
    }
}

impl Answer for u64 {
    async fn ask(
        client: &Client,
        prepared: &Prepared,
        parameters: Parameters<'_>,
    ) -> Result<Self, tokio_postgres::Error> {
        client.execute(&prepared.statement, parameters).await
    }
}
