//! Connections in this crate's own pool.

use super::{budget::PostgresBudget, connection::PostgresConnection, pool::PostgresManager};
use crate::pool::{Allowance, Demand, Pool, PoolBuilder};

impl PostgresManager {
    /// Settings of a [`Pool`] of these connections. The name is in its errors, logs and metrics.
    ///
    /// The same as [`Pool::builder`], and two things more: a connection on which something of the last caller is still
    /// being undone is not lent before ([`test_if`](PoolBuilder::test_if)), so that whoever uses the
    /// driver's client there is not struck by the cancellation of another's query; and one that is closed counts until
    /// what runs there is cancelled and the server has hung up ([`gone_when`](PoolBuilder::gone_when)). Over a Unix socket
    /// or with a [connector of your own](super::PostgresManagerBuilder::with_tls) that is not known: it counts until it was
    /// hung up on, and the server may have it for a moment longer. Leave it room for a few more than the pool may have.
    ///
    /// Errors go through as they are: a wrong password is an error of kind
    /// [`Credentials`](crate::ErrorKind::Credentials) of [`get`](Pool::get), too. A server that has as many
    /// connections as it takes makes an [`adaptive`](PoolBuilder::adaptive) pool give way. After a failover that one
    /// connection has heard of, none of the others is lent any more, and idle ones are replaced within a second or two
    /// of its return.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use mcp_perf::postgres::PostgresManager;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let manager = PostgresManager::builder("postgres://server@127.0.0.1/server")?.build()?;
    /// let pool = manager.pool("registry").adaptive(2..=40).build()?;
    ///
    /// let mut connection = pool.get().await?;
    /// let transaction = connection.transaction().await?;
    /// transaction.execute_cached("update servers set seen = now() where id = $1", &[&7_i64]).await?;
    /// transaction.commit().await?; // or it is rolled back
    /// # Ok(()) }
    /// ```
    pub fn pool(&self, name: impl Into<String>) -> PoolBuilder<Self> {
        Pool::builder(name, self.clone())
            .test_if(|connection: &PostgresConnection| !connection.is_ready())
            .gone_when(|connection: &PostgresConnection| connection.0.gone())
    }
}

/// The pool's ceiling is what the budget's is: the share, and what is leased. A lease that is lost leaves the share, and
/// the pool is back at it within a second, but for what is in use. So it is, step by step, where others want more and
/// have less.
///
/// ```no_run
/// use mcp_perf::postgres::{PostgresBudget, PostgresManager};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
/// // Four processes of 8 and a stock of 48: 80 of the server's 97.
/// let manager = PostgresManager::builder("postgres://server@127.0.0.1/server")?.build()?;
/// let budget = PostgresBudget::builder(manager.clone(), "registry").share(8).stock(48).build()?;
/// let pool = manager.pool("registry").adaptive(2..=40).allowance(budget).build()?;
/// assert_eq!(pool.stats().ceiling, 7); // the share, less the budget's own connection
/// # Ok(()) }
/// ```
impl Allowance for PostgresBudget {
    fn ceiling(&self) -> u32 {
        self.ceiling()
    }

    fn own(&self) -> u32 {
        self.of(0)
    }

    async fn want(&self, demand: Demand) {
        self.want_more(demand.open, demand.wanted).await;
    }
}
