//! The pools of PostgreSQL connections, each with its statements prepared once for each connection.
//!
//! Ours and deadpool-postgres keep prepared statements. bb8-postgres lends the driver's bare client; a manager around
//! it prepares every statement of the bench when it connects, which is the most that its user can do.

use anyhow::{Error, Result};
use bb8::ManageConnection;
use bb8_postgres::PostgresConnectionManager;
use deadpool_postgres::{ManagerConfig, RecyclingMethod};
use mcp_perf::postgres::{PostgresConnection, PostgresManager};
use tokio_postgres::{Client, NoTls, Row, Statement, types::ToSql};

use super::{site::TIMEOUT, work::Sql};

/// A pool of connections to PostgreSQL.
pub(super) trait Peer: Clone + Send + Sync + 'static {
    type Session: Session + 'static;

    fn get(&self) -> impl Future<Output = Result<Self::Session>> + Send;
}

const MOST_WAITING: u32 = 1_000_000;

/// What it lends.
pub(super) trait Session: Send {
    fn query(&mut self, sql: Sql, parameters: &[i64]) -> impl Future<Output = Result<Vec<Row>>> + Send;

    /// Runs the steps, and commits.
    fn transaction(&mut self, steps: &[(Sql, &[i64])]) -> impl Future<Output = Result<()>> + Send;
}

pub(super) type Ours<M = PostgresManager> = mcp_perf::pool::Pool<M>;
pub(super) type Bb8<M = PreparingManager> = bb8::Pool<M>;
pub(super) type Deadpool = deadpool_postgres::Pool;

/// As many may wait as there are: the others have no bound.
pub(super) fn ours(url: &str) -> Result<mcp_perf::pool::PoolBuilder<PostgresManager>> {
    let manager = PostgresManager::builder(url)?.build()?;
    Ok(Ours::builder("bench", manager).timeout(TIMEOUT).max_waiting(MOST_WAITING))
}

/// Without the test of a connection that is about to be lent, since ours leaves it out, too, for one that was just used.
pub(super) async fn bb8(url: &str, size: u32) -> Result<Bb8> {
    bb8_that_tests(url, size, false).await
}

/// With it, which is bb8's default, where connections are cut.
pub(super) async fn bb8_that_tests(url: &str, size: u32, tests: bool) -> Result<Bb8> {
    let builder = bb8::Pool::builder().max_size(size).test_on_check_out(tests).connection_timeout(TIMEOUT);
    Ok(builder.build(PreparingManager::new(url)?).await?)
}

pub(super) fn deadpool(url: &str, size: u32) -> Result<Deadpool> {
    let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = deadpool_postgres::Manager::from_config(url.parse()?, NoTls, config);
    let builder = Deadpool::builder(manager).max_size(usize::try_from(size)?);
    let builder = builder.wait_timeout(Some(TIMEOUT)).create_timeout(Some(TIMEOUT));
    Ok(builder.runtime(deadpool::Runtime::Tokio1).build()?)
}

/// bb8-postgres's manager, and statements.
pub(super) struct PreparingManager(PostgresConnectionManager<NoTls>);

pub(super) struct Prepared {
    client: Client,
    statements: Vec<Statement>,
}

impl PreparingManager {
    pub(super) fn new(url: &str) -> Result<Self> {
        Ok(Self(PostgresConnectionManager::new(url.parse()?, NoTls)))
    }
}

impl ManageConnection for PreparingManager {
    type Connection = Prepared;
    type Error = tokio_postgres::Error;

    async fn connect(&self) -> Result<Prepared, tokio_postgres::Error> {
        let client = self.0.connect().await?;
        let mut statements = Vec::new();
        for sql in Sql::ALL {
            statements.push(client.prepare(sql.text()).await?);
        }
        Ok(Prepared { client, statements })
    }

    async fn is_valid(&self, prepared: &mut Prepared) -> Result<(), tokio_postgres::Error> {
        self.0.is_valid(&mut prepared.client).await
    }

    fn has_broken(&self, prepared: &mut Prepared) -> bool {
        self.0.has_broken(&mut prepared.client)
    }
}

impl<M> Peer for Ours<M>
where
    M: ManageConnection<Connection = PostgresConnection, Error = mcp_perf::Error>,
{
    type Session = mcp_perf::pool::Connection<M>;

    async fn get(&self) -> Result<Self::Session> {
        Ok(Self::get(self).await?)
    }
}

impl<M> Session for mcp_perf::pool::Connection<M>
where
    M: ManageConnection<Connection = PostgresConnection>,
{
    async fn query(&mut self, sql: Sql, parameters: &[i64]) -> Result<Vec<Row>> {
        Ok(self.query_cached(sql.text(), &erased(parameters)).await?)
    }

    async fn transaction(&mut self, steps: &[(Sql, &[i64])]) -> Result<()> {
        let transaction = PostgresConnection::transaction(self).await?;
        for (sql, parameters) in steps {
            transaction.query_cached(sql.text(), &erased(parameters)).await?;
        }
        Ok(transaction.commit().await?)
    }
}

impl<M> Peer for Bb8<M>
where
    M: ManageConnection<Connection = Prepared, Error = tokio_postgres::Error>,
{
    type Session = bb8::PooledConnection<'static, M>;

    async fn get(&self) -> Result<Self::Session> {
        Ok(self.get_owned().await?)
    }
}

impl<M> Session for bb8::PooledConnection<'static, M>
where
    M: ManageConnection<Connection = Prepared>,
{
    async fn query(&mut self, sql: Sql, parameters: &[i64]) -> Result<Vec<Row>> {
        let Prepared { client, statements } = &**self;
        Ok(client.query(&statements[sql as usize], &erased(parameters)).await?)
    }

    async fn transaction(&mut self, steps: &[(Sql, &[i64])]) -> Result<()> {
        let Prepared { client, statements } = &mut **self;
        let transaction = client.transaction().await?;
        for (sql, parameters) in steps {
            transaction.query(&statements[*sql as usize], &erased(parameters)).await?;
        }
        Ok(transaction.commit().await?)
    }
}

impl Peer for Deadpool {
    type Session = deadpool_postgres::Object;

    async fn get(&self) -> Result<Self::Session> {
        Self::get(self).await.map_err(Error::new)
    }
}

impl Session for deadpool_postgres::Object {
    async fn query(&mut self, sql: Sql, parameters: &[i64]) -> Result<Vec<Row>> {
        let statement = self.prepare_cached(sql.text()).await?;
        Ok(Client::query(self, &statement, &erased(parameters)).await?)
    }

    async fn transaction(&mut self, steps: &[(Sql, &[i64])]) -> Result<()> {
        let transaction = deadpool_postgres::ClientWrapper::transaction(self).await?;
        for (sql, parameters) in steps {
            let statement = transaction.prepare_cached(sql.text()).await?;
            transaction.query(&statement, &erased(parameters)).await?;
        }
        Ok(transaction.commit().await?)
    }
}

/// As the driver takes them.
fn erased(parameters: &[i64]) -> Vec<&(dyn ToSql + Sync)> {
    parameters.iter().map(|parameter| parameter as &(dyn ToSql + Sync)).collect()
}
