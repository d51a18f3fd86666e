//! The registry: 20,000 servers with their tools in an embedded `SQLite` database.
//!
//! Written the way a careful author would write it, because it is the rival that the wrapped server
//! has to beat: full-text indexes with weighted `bm25`, prepared statements, one read connection
//! per core beside one writer (write-ahead log, so that neither waits for the other), memory-mapped
//! pages, and all of it away from the threads that serve the network.

use std::{path::Path, thread};

use anyhow::Result;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Row, ToSql, TransactionBehavior, named_params,
    types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{catalogue::Catalogue, connections::Connections};

/// What a search shows of a server.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ServerSummary {
    id: String,
    title: String,
    description: String,
    category: String,
    downloads: u32,
    /// Relevance to the query, weighted by how much the server is used; higher is better.
    score: f64,
}

/// Everything the registry knows of a server.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ServerDetail {
    id: String,
    title: String,
    description: String,
    publisher: String,
    category: String,
    tags: Vec<String>,
    version: String,
    downloads: u32,
    health: Health,
    tools: Vec<ToolSummary>,
}

/// A tool of a server.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ToolSummary {
    name: String,
    description: String,
}

/// A tool that a search found.
#[derive(Serialize, JsonSchema)]
pub(crate) struct FoundTool {
    server: String,
    name: String,
    description: String,
    /// Relevance to the query; higher is better.
    score: f64,
}

/// What monitors last said of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Health {
    pub(crate) status: Status,
    /// How long the server took to answer, in milliseconds.
    pub(crate) latency_ms: u32,
    /// How many reports this server has received; each adds one.
    pub(crate) reports: u32,
}

/// Whether a server works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Healthy,
    Degraded,
    Down,
}

/// The open database. Clones share its connections.
#[derive(Clone)]
pub(crate) struct Database {
    readers: Connections,
    writer: Connections,
}

impl Database {
    /// Writes a registry into a new file at `path`; the same seed gives the same registry.
    pub(crate) fn generate(path: &Path, seed: u64) -> Result<()> {
        let mut connection = Connection::open(path)?;
        // There is nothing to lose yet: a generator that dies starts again.
        connection.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")?;
        let transaction = connection.transaction()?;
        transaction.execute_batch(SCHEMA)?;
        fill(&transaction, seed)?;
        transaction.execute_batch(INDEXES)?;
        transaction.commit()?;
        connection.execute_batch("ANALYZE; PRAGMA journal_mode = WAL;")?;
        Ok(())
    }

    /// Opens the registry in the file at `path`.
    pub(crate) fn open(path: &Path) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            readers: Connections::new(path, OpenFlags::SQLITE_OPEN_READ_ONLY, cores),
            writer: Connections::new(path, OpenFlags::SQLITE_OPEN_READ_WRITE, 1),
        }
    }

    /// Ranks all servers by a full-text query and returns the best ones.
    pub(crate) async fn search_servers(&self, query: String, limit: u32) -> Result<Vec<ServerSummary>> {
        let search = move |connection: &mut Connection| {
            connection
                .prepare_cached(SEARCH_SERVERS)?
                .query_map((any_word_of(&query), limit), |row| {
                    Ok(ServerSummary {
                        id: row.get("id")?,
                        title: row.get("title")?,
                        description: row.get("description")?,
                        category: row.get("category")?,
                        downloads: row.get("downloads")?,
                        score: score(row)?,
                    })
                })?
                .collect()
        };
        self.readers.run(search).await
    }

    /// Ranks the tools of all servers, or of those of one category, by a full-text query and
    /// returns the best ones.
    pub(crate) async fn find_tools(
        &self,
        query: String,
        category: Option<String>,
        limit: u32,
    ) -> Result<Vec<FoundTool>> {
        let search = move |connection: &mut Connection| {
            let query = any_word_of(&query);
            let tool = |row: &Row<'_>| {
                Ok(FoundTool {
                    server: row.get("id")?,
                    name: row.get("name")?,
                    description: row.get("description")?,
                    score: score(row)?,
                })
            };
            match category {
                None => connection.prepare_cached(FIND_TOOLS)?.query_map((query, limit), tool)?.collect(),
                Some(category) => connection
                    .prepare_cached(FIND_TOOLS_OF_CATEGORY)?
                    .query_map((query, limit, category), tool)?
                    .collect(),
            }
        };
        self.readers.run(search).await
    }

    /// Returns a server with its tools and its present health.
    pub(crate) async fn server(&self, id: String) -> Result<Option<ServerDetail>> {
        let read = move |connection: &mut Connection| {
            // One snapshot, so that the tools belong to the server just read.
            let snapshot = connection.transaction()?;
            let found = snapshot
                .prepare_cached(GET_SERVER)?
                .query_row([&id], |row| {
                    let tags: String = row.get("tags")?;
                    let detail = ServerDetail {
                        id: row.get("id")?,
                        title: row.get("title")?,
                        description: row.get("description")?,
                        publisher: row.get("publisher")?,
                        category: row.get("category")?,
                        tags: tags.split(' ').map(String::from).collect(),
                        version: row.get("version")?,
                        downloads: row.get("downloads")?,
                        health: health(row)?,
                        tools: Vec::new(),
                    };
                    Ok((row.get::<_, i64>("key")?, detail))
                })
                .optional()?;
            let Some((key, mut detail)) = found else {
                return Ok(None);
            };
            detail.tools = snapshot
                .prepare_cached(TOOLS_OF_SERVER)?
                .query_map([key], |row| {
                    Ok(ToolSummary { name: row.get("name")?, description: row.get("description")? })
                })?
                .collect::<rusqlite::Result<_>>()?;
            Ok(Some(detail))
        };
        self.readers.run(read).await
    }

    /// Records what a monitor saw of a server and returns the server's health from now on, or
    /// `None` if there is no such server. Every read that starts later sees it.
    pub(crate) async fn report_health(
        &self,
        id: String,
        status: Status,
        latency_ms: u32,
    ) -> Result<Option<Health>> {
        let write = move |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let updated = transaction
                .prepare_cached(UPDATE_HEALTH)?
                .query_row((&id, status, latency_ms), |row| Ok((row.get::<_, i64>("server")?, health(row)?)))
                .optional()?;
            if let Some((server, health)) = &updated {
                transaction.prepare_cached(RECORD_REPORT)?.execute((
                    server,
                    health.reports,
                    health.status,
                    health.latency_ms,
                ))?;
            }
            transaction.commit()?;
            Ok(updated.map(|(_, health)| health))
        };
        self.writer.run(write).await
    }

    /// Returns the ids of the most downloaded servers with their health, most downloaded first.
    pub(crate) async fn most_downloaded(&self, limit: u32) -> Result<Vec<(String, Health)>> {
        let read = move |connection: &mut Connection| {
            connection
                .prepare_cached(MOST_DOWNLOADED)?
                .query_map([limit], |row| Ok((row.get("id")?, health(row)?)))?
                .collect()
        };
        self.readers.run(read).await
    }
}

fn fill(connection: &Connection, seed: u64) -> Result<()> {
    let mut add_server = connection.prepare(ADD_SERVER)?;
    let mut add_tool = connection.prepare("INSERT INTO tools VALUES (NULL, ?, ?, ?)")?;
    let mut add_health = connection.prepare("INSERT INTO health VALUES (?, ?, ?, ?)")?;
    for entry in Catalogue::new(seed).entries() {
        let server = add_server.insert(named_params! {
            ":id": entry.id,
            ":title": entry.title,
            ":description": entry.description,
            ":publisher": entry.publisher,
            ":category": entry.category,
            ":tags": entry.tags.join(" "),
            ":version": entry.version,
            ":downloads": entry.downloads,
            // Ten times the downloads count for about a tenth more relevance.
            ":prominence": 1.0 + 0.05 * f64::from(entry.downloads).ln_1p(),
        })?;
        for tool in entry.tools {
            add_tool.execute((server, tool.name, tool.description))?;
        }
        let health = entry.health;
        add_health.execute((server, health.status, health.latency_ms, health.reports))?;
    }
    Ok(())
}

/// Turns what a user typed into a full-text query for documents with any of its words. Quoted, so
/// that nothing typed is read as an operator.
fn any_word_of(query: &str) -> String {
    let quoted: Vec<String> = words(query).map(|word| format!("\"{word}\"")).collect();
    quoted.join(" OR ")
}

/// Splits a query into the words that the full-text index knows.
pub(crate) fn words(query: &str) -> impl Iterator<Item = &str> {
    query.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty())
}

/// Reads `bm25`, which is lower for better matches, as a score with three decimals.
fn score(row: &Row<'_>) -> rusqlite::Result<f64> {
    let rank: f64 = row.get("rank")?;
    Ok((rank * -1_000.0).round() / 1_000.0)
}

fn health(row: &Row<'_>) -> rusqlite::Result<Health> {
    Ok(Health {
        status: row.get("status")?,
        latency_ms: row.get("latency_ms")?,
        reports: row.get("reports")?,
    })
}

impl Status {
    const ALL: [Self; 3] = [Self::Healthy, Self::Degraded, Self::Down];

    fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

impl ToSql for Status {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for Status {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let text = value.as_str()?;
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(FromSqlError::InvalidType)
    }
}

const SCHEMA: &str = "
    CREATE TABLE servers (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        title TEXT NOT NULL,
        description TEXT NOT NULL,
        publisher TEXT NOT NULL,
        category TEXT NOT NULL,
        tags TEXT NOT NULL,
        version TEXT NOT NULL,
        downloads INTEGER NOT NULL,
        -- by how much its use lifts a server in the ranking of a search
        prominence REAL NOT NULL
    ) STRICT;
    CREATE TABLE tools (
        key INTEGER PRIMARY KEY,
        server INTEGER NOT NULL REFERENCES servers,
        name TEXT NOT NULL,
        description TEXT NOT NULL
    ) STRICT;
    CREATE TABLE health (
        server INTEGER PRIMARY KEY REFERENCES servers,
        status TEXT NOT NULL,
        latency_ms INTEGER NOT NULL,
        reports INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE reports (
        server INTEGER NOT NULL REFERENCES servers,
        number INTEGER NOT NULL,
        status TEXT NOT NULL,
        latency_ms INTEGER NOT NULL,
        PRIMARY KEY (server, number)
    ) STRICT, WITHOUT ROWID;
    CREATE VIRTUAL TABLE server_text USING fts5 (
        title, description, tags, publisher,
        content = 'servers', content_rowid = 'key', tokenize = 'porter unicode61'
    );
    CREATE VIRTUAL TABLE tool_text USING fts5 (
        name, description,
        content = 'tools', content_rowid = 'key', tokenize = 'porter unicode61'
    );
";

/// Built when the tables are full, which is faster than keeping them up to date on the way.
const INDEXES: &str = "
    CREATE UNIQUE INDEX servers_by_id ON servers (id);
    CREATE INDEX servers_by_downloads ON servers (downloads);
    CREATE INDEX tools_by_server ON tools (server);
    INSERT INTO server_text (server_text) VALUES ('rebuild');
    INSERT INTO server_text (server_text) VALUES ('optimize');
    INSERT INTO tool_text (tool_text) VALUES ('rebuild');
    INSERT INTO tool_text (tool_text) VALUES ('optimize');
";

const ADD_SERVER: &str = "
    INSERT INTO servers
    VALUES (NULL, :id, :title, :description, :publisher, :category, :tags, :version, :downloads,
            :prominence)
";

/// Every match is ranked by its words; of the best hundred, the most used servers come first. Rows
/// are looked up for those hundred only.
const SEARCH_SERVERS: &str = "
    SELECT id, title, description, category, downloads, relevance * prominence AS rank
    FROM (
        SELECT rowid AS best, bm25(server_text, 4.0, 1.0, 2.0, 1.0) AS relevance
        FROM server_text
        WHERE server_text MATCH ?1
        ORDER BY relevance, best
        LIMIT 100
    )
    JOIN servers ON key = best
    ORDER BY rank, key
    LIMIT ?2
";

const FIND_TOOLS: &str = "
    SELECT id, tools.name, tools.description, rank
    FROM (
        SELECT rowid AS best, bm25(tool_text, 3.0, 1.0) AS rank
        FROM tool_text
        WHERE tool_text MATCH ?1
        ORDER BY rank, best
        LIMIT ?2
    )
    JOIN tools ON tools.key = best
    JOIN servers ON servers.key = server
    ORDER BY rank, best
";

/// `CROSS` keeps the order of the joins: matches first, of which those of the category are ranked.
const FIND_TOOLS_OF_CATEGORY: &str = "
    SELECT id, tools.name, tools.description, bm25(tool_text, 3.0, 1.0) AS rank
    FROM tool_text
    CROSS JOIN tools ON tools.key = tool_text.rowid
    CROSS JOIN servers ON servers.key = server
    WHERE tool_text MATCH ?1 AND category = ?3
    ORDER BY rank, tools.key
    LIMIT ?2
";

const GET_SERVER: &str = "
    SELECT servers.*, status, latency_ms, reports
    FROM servers
    JOIN health ON server = key
    WHERE id = ?
";

const TOOLS_OF_SERVER: &str = "SELECT name, description FROM tools WHERE server = ? ORDER BY key";

const UPDATE_HEALTH: &str = "
    UPDATE health
    SET status = ?2, latency_ms = ?3, reports = reports + 1
    WHERE server = (SELECT key FROM servers WHERE id = ?1)
    RETURNING server, status, latency_ms, reports
";

const RECORD_REPORT: &str = "INSERT INTO reports VALUES (?, ?, ?, ?)";

const MOST_DOWNLOADED: &str = "
    SELECT id, status, latency_ms, reports
    FROM servers
    JOIN health ON server = key
    ORDER BY downloads DESC, key
    LIMIT ?
";
