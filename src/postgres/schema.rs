//! The tables: their names, and how they are made.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::{Client, types::ToSql};

use super::{
    cache::column,
    connector::{Connected, Connector},
    fault::sorted,
};
use crate::Error;

/// The version of the tables that this release reads and writes.
pub(super) const VERSION: i32 = 1;

/// The longest that a migration waits for another one and works, which is more than a query of the cache may take.
const MIGRATION_TIMEOUT: &str = "SET LOCAL statement_timeout = '60s'; SET LOCAL lock_timeout = '30s'";

/// For all of it. Each statement has the time above, as the server counts it: one that says nothing counts nothing.
const LONGEST: Duration = Duration::from_secs(180);

/// The names of the tables. They are checked when they are set and quoted where they are used.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    schema: String,
    prefix: String,
}

impl Default for Tables {
    fn default() -> Self {
        Self { schema: "public".to_owned(), prefix: "mcp_perf".to_owned() }
    }
}

impl Tables {
    pub(super) fn with_schema(self, schema: String) -> Result<Self, Error> {
        check("schema", &schema)?;
        Ok(Self { schema, ..self })
    }

    pub(super) fn with_prefix(self, prefix: String) -> Result<Self, Error> {
        check("prefix", &prefix)?;
        Ok(Self { prefix, ..self })
    }

    pub(super) fn entries(&self) -> String {
        format!(r#""{}"."{}_entries""#, self.schema, self.prefix)
    }

    pub(super) fn stamps(&self) -> String {
        format!(r#""{}"."{}_stamps""#, self.schema, self.prefix)
    }

    pub(super) fn versions(&self) -> String {
        format!(r#""{}"."{}_version""#, self.schema, self.prefix)
    }

    /// Makes what is not there, on a connection of its own, whose transaction is nobody else's.
    pub(super) async fn migrate(&self, connector: &Connector) -> Result<(), Error> {
        let connected = connector.connect().await;
        let Connected { client, connection, .. } =
            connected.map_err(|fault| fault.coarsely_connecting("migrate"))?;
        tokio::spawn(connection.run());
        // Without the client the connection ends, and what was not committed is rolled back.
        timeout(LONGEST, self.migrate_on(&client)).await.unwrap_or_else(|elapsed| {
            let problem = format!("postgres: no answer within {LONGEST:?} (migrate)");
            Err(Error::unavailable(problem, elapsed))
        })
    }

    async fn migrate_on(&self, client: &Client) -> Result<(), Error> {
        let sql =
            async |sql: String| client.batch_execute(&sql).await.map_err(|error| sorted("migrate", error));
        sql(format!("BEGIN; {MIGRATION_TIMEOUT}")).await?;
        // One at a time; the others find everything done.
        let whose = format!("mcp-perf {}.{}", self.schema, self.prefix);
        self.ask(client, "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", &[&whose]).await?;
        if !self.are_there(client).await? {
            let schema =
                self.ask(client, "SELECT FROM pg_namespace WHERE nspname = $1", &[&self.schema]).await?;
            // Asked for even if it is there, this takes a privilege.
            if schema.is_empty() {
                sql(format!(r#"CREATE SCHEMA "{}""#, self.schema)).await?;
            }
            sql(self.ddl()).await?;
        }
        sql("COMMIT".to_owned()).await
    }

    /// Whether there is nothing to do. Tables of a later release are its own, and left alone.
    async fn are_there(&self, client: &Client) -> Result<bool, Error> {
        let tables = [self.versions(), self.entries(), self.stamps()];
        let found = "SELECT to_regclass(name) IS NOT NULL FROM unnest($1::text[]) AS t(name)";
        let found = self.ask(client, found, &[&tables.as_slice()]).await?;
        let found: Vec<bool> = found.iter().map(|row| column(row, 0)).collect::<Result<_, _>>()?;
        if found.first() != Some(&true) {
            return Ok(false);
        }
        let version = self.ask(client, &format!("SELECT version FROM {}", self.versions()), &[]).await?;
        let version = version.first().map(|row| column::<i32>(row, 0)).transpose()?;
        if let Some(later) = version.filter(|version| *version > VERSION) {
            is_known(later)?;
        }
        Ok(version == Some(VERSION) && !found.contains(&false))
    }

    async fn ask(
        &self,
        client: &Client,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, Error> {
        client.query(sql, parameters).await.map_err(|error| sorted("migrate", error))
    }

    /// The values are compressed already if that pays. Rows come and go all the time, so dead ones are cleared away
    /// before they are a fifth of the table, which is the default.
    fn ddl(&self) -> String {
        let Self { prefix, .. } = self;
        let (entries, stamps, versions) = (self.entries(), self.stamps(), self.versions());
        format!(
            r#"
            CREATE UNLOGGED TABLE IF NOT EXISTS {entries} (
                name text COLLATE "C" PRIMARY KEY,
                fence uuid NOT NULL,
                bytes bytea,
                expires timestamptz NOT NULL
            ) WITH (
                autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000,
                toast.autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_threshold = 1000
            );
            ALTER TABLE {entries} ALTER COLUMN bytes SET STORAGE EXTERNAL;
            CREATE INDEX IF NOT EXISTS "{prefix}_entries_expires" ON {entries} (expires);
            CREATE UNLOGGED TABLE IF NOT EXISTS {stamps} (
                name text COLLATE "C" PRIMARY KEY,
                removed bigint NOT NULL,
                expired bigint NOT NULL,
                used timestamptz NOT NULL
            );
            CREATE INDEX IF NOT EXISTS "{prefix}_stamps_used" ON {stamps} (used);
            CREATE TABLE IF NOT EXISTS {versions} (version integer NOT NULL);
            DELETE FROM {versions};
            INSERT INTO {versions} VALUES ({VERSION});
            COMMENT ON TABLE {versions} IS 'Version of the tables of a cache of mcp-perf';
            "#
        )
    }
}

/// Whether this release can work with tables of this version.
pub(super) fn is_known(version: i32) -> Result<(), Error> {
    let problem = match version {
        VERSION => return Ok(()),
        ..VERSION => "its tables are of an earlier release; `PostgresStore::migrate` brings them up to date",
        _ => "its tables are of a later release; another prefix keeps the two apart",
    };
    Err(Error::new(crate::ErrorKind::Refused, format!("postgres refused (version): {problem}")))
}

/// Of a name of which nothing but itself can be made, quoted or not.
pub(super) fn check(field: &str, name: &str) -> Result<(), Error> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    if begins && name.len() <= 40 && name.bytes().all(fits) {
        Ok(())
    } else {
        Err(Error::configuration(field, "1 to 40 lower-case letters, digits or `_`, the first no digit"))
    }
}
