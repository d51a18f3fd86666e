//! The remote tier of a cache in PostgreSQL.
//!
//! An entry is a row: its name, a *fence* of 16 bytes that no other write has, its bytes, and when it expires by the
//! server's clock. A removal leaves the row without bytes. To write conditionally is to update the row of that
//! name and fence, which one of many can do.
//!
//! Reading writes nothing, so an absence has no row, and its fence is made of two things: the *generation* of the
//! table, a row under the empty name, and the time of the reading. To write over an absence is to insert the row if
//! there is none, the generation is still the same, and the reading was at most [`FENCE_LIFE`] ago. That
//! keeps out every load from before a removal:
//!
//! - While the removal's row is there, it is in the way of the insertion.
//! - A purge deletes no row before it has been dead for longer than [`FENCE_LIFE`]. A reading from before the removal
//!   is older still when the row is gone, and one from after it has nothing to fear.
//! - A crash, a failover and a `TRUNCATE` delete the removals, and the generation with them. The next one is
//!   another one.
//!
//! What is written twice because the first answer was lost, and what takes longer to load than [`FENCE_LIFE`], is
//! refused, which errs to the safe side.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as StdError,
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio_postgres::{
    Row, Socket,
    tls::{MakeTlsConnect, NoTls, TlsConnect},
    types::{FromSql, IsNull, ToSql, Type, to_sql_checked},
};

use super::{
    pool::{Connector, Flag, Pool, Session},
    schema::{Tables, is_known},
};
use crate::{
    Error, ErrorKind,
    cache::{Fence, Found, Invalidation, Put, Restamp, Slot, Stamp, Store, Stored, Written},
};

/// Enough that two cores of the server can read, and that one big answer does not hold up every small one.
const READERS: u32 = 2;
const WRITERS: u32 = 1;

/// How long a load may take and still be stored where nothing was.
const FENCE_LIFE: &str = "interval '10 minutes'";
/// How long what is dead stays: longer than any fence that was read before it died, and a minute for clocks that are
/// set back and statements that take their time.
const DEAD_LIFE: &str = "interval '11 minutes'";
/// Longer than any entry lives. A stamp that was forgotten comes back as another, and what depended on it is a
/// miss.
const STAMP_LIFE: &str = "interval '31 days'";
/// A stamp that was not noted as used for so long is noted when it is next read.
const STAMP_IS_DUE: &str = "interval '1 day'";
/// No entry lives longer, whatever its row says.
const MOST_LIFE: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// One row written in so many starts a purge.
const PURGE_EVERY: u32 = 500;
const PURGE_BATCH: u32 = 500;
const PURGE_BATCHES: u32 = 20;
/// After this the server is taken to be away.
const PURGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A [`Store`] in PostgreSQL. Connects when it is first used.
///
/// Its tables have to be there: see [`migrate`](Self::migrate).
#[derive(Clone)]
pub struct PostgresStore {
    connector: Connector,
    tables: Arc<Tables>,
    reads: Pool,
    writes: Pool,
    purging: Arc<AtomicBool>,
}

impl PostgresStore {
    /// A store at `postgres://[user[:password]@]host[:port][/database]`, without TLS.
    ///
    /// What else the driver understands is in the page of `tokio_postgres::Config`.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) if the URL is not of that form, or asks for TLS. Whether there
    /// is a server shows when the cache is built.
    pub fn new(url: &str) -> Result<Self, Error> {
        Ok(Self::at(Connector::new(url, NoTls, false)?, Tables::default()))
    }

    /// The same over TLS, with a connector for tokio-postgres 0.7, such as the one of `tokio-postgres-rustls`.
    ///
    /// The URL decides by `sslmode` whether it has to be: `require` refuses to go without, `prefer`, which is the
    /// default, goes without if the server cannot.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with_tls<T>(url: &str, tls: T) -> Result<Self, Error>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send,
        T::Stream: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        Ok(Self::at(Connector::new(url, tls, true)?, Tables::default()))
    }

    /// What the name of every table begins with: `mcp_perf` unless set. Programs that share a database and not
    /// their caches need different ones.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) unless it is 1 to 40 lower-case letters, digits or `_`, the
    /// first of them no digit.
    pub fn prefix(self, prefix: impl Into<String>) -> Result<Self, Error> {
        let tables = Tables::clone(&self.tables).with_prefix(prefix.into())?;
        Ok(Self::at(self.connector, tables))
    }

    /// The schema of the tables: `public` unless set.
    ///
    /// # Errors
    ///
    /// As for [`prefix`](Self::prefix).
    pub fn schema(self, schema: impl Into<String>) -> Result<Self, Error> {
        let tables = Tables::clone(&self.tables).with_schema(schema.into())?;
        Ok(Self::at(self.connector, tables))
    }

    fn at(connector: Connector, tables: Tables) -> Self {
        let tables = Arc::new(tables);
        let pool = |size| Pool::new(connector.clone(), Arc::clone(&tables), size);
        let (reads, writes) = (pool(READERS), pool(WRITERS));
        Self { connector, tables, reads, writes, purging: Arc::default() }
    }

    /// Makes the schema, the tables and their indexes, unless they are there.
    ///
    /// Never done unasked: the user of a running server need not be one that may make tables. It needs a privilege to
    /// create in the schema, or in the database if the schema is not there; afterwards to read, insert, update and
    /// delete is enough. Several processes may do it at once, in which case one does. It is one transaction.
    ///
    /// # Errors
    ///
    /// [`Refused`](ErrorKind::Refused) if the user may not, or if the tables are of a later release;
    /// [`Unavailable`](ErrorKind::Unavailable) if the server cannot be reached.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has happened or not, and wholly.
    pub async fn migrate(&self) -> Result<(), Error> {
        self.tables.migrate(&self.connector).await
    }

    /// Deletes the rows of what died more than eleven minutes ago, and says how many there were. The writers see to
    /// that by themselves; this is for a scheduler of your own.
    ///
    /// At most 10,000 entries and 500 stamps in one call. What others hold locked is left for the next.
    ///
    /// # Errors
    ///
    /// The server's.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has deleted whole batches.
    pub async fn purge(&self) -> Result<u64, Error> {
        let mut purged = 0;
        for _ in 0..PURGE_BATCHES {
            let batch = self.purge_batch(Query::PurgeEntries).await?;
            purged += batch;
            if batch < u64::from(PURGE_BATCH) {
                break;
            }
        }
        Ok(purged + self.purge_batch(Query::PurgeStamps).await?)
    }

    async fn purge_batch(&self, query: Query) -> Result<u64, Error> {
        let most = i64::from(PURGE_BATCH);
        let batch = self.writes.run("purge", |session| async move { session.count(query, &[&most]).await });
        tokio::time::timeout(PURGE_TIMEOUT, batch)
            .await
            .unwrap_or_else(|elapsed| Err(Error::unavailable("postgres: no answer in time (purge)", elapsed)))
    }

    /// Now and then starts a purge in the background, so that what is written is deleted at the same rate. By chance
    /// and not by count: many processes that write little each do their part, too.
    fn wrote(&self, rows: usize) {
        if fastrand::usize(..PURGE_EVERY as usize) >= rows {
            return;
        }
        let Some(purging) = Flag::raise(&self.purging) else { return };
        let store = self.clone();
        tokio::spawn(async move {
            match store.purge().await {
                Ok(purged) => tracing::debug!(purged, "postgres: rows of what is dead were deleted"),
                Err(error) => tracing::debug!("postgres: purge failed: {error}"),
            }
            drop(purging);
        });
    }

    /// The generation of the table, made if there is none.
    async fn make_generation(&self) -> Result<Uuid, Error> {
        let generation = generation();
        let rows = self
            .writes
            .run("read", |session| async move { session.rows(Query::MakeGeneration, &[&generation]).await })
            .await?;
        Ok(rows.first().and_then(|row| row.try_get(0).ok()).unwrap_or(generation))
    }

    /// Reads stamps again, after writing random ones where there still are none, and notes that they are in use.
    async fn make_stamps(&self, names: BTreeSet<&str>) -> Result<BTreeMap<String, Stamp>, Error> {
        // In order, as everywhere: two callers who lock the same rows never wait for each other.
        let names: Vec<&str> = names.into_iter().collect();
        let (removed, expired): (Vec<i64>, Vec<i64>) = names.iter().map(|_| halves(Stamp::random())).unzip();
        let (names, removed, expired) = (&names, &removed, &expired);
        let made = |session: Arc<Session>| async move {
            session.rows(Query::MakeStamps, &[names, removed, expired]).await
        };
        let rows = self.writes.run("make stamps", made).await?;
        rows.iter().map(|row| Ok((column(row, 0)?, stamp(column(row, 1)?, column(row, 2)?)))).collect()
    }

    async fn restamp_all(&self, query: Query, changes: &BTreeMap<&str, Stamp>) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = changes.keys().copied().collect();
        let (removed, expired): (Vec<i64>, Vec<i64>) = changes.values().map(|stamp| halves(*stamp)).unzip();
        let (names, removed, expired) = (&names, &removed, &expired);
        let restamped =
            |session: Arc<Session>| async move { session.count(query, &[names, removed, expired]).await };
        self.writes.run("restamp", restamped).await.map(drop)
    }
}

impl Store for PostgresStore {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        let rows = self
            .reads
            .run("read", |session| async move { session.rows(Query::Read, &[&entries, &stamps]).await })
            .await?;
        let mut slots = vec![None; entries.len()];
        let mut found = vec![None; stamps.len()];
        let (mut absent, mut due) = (Vec::new(), BTreeSet::new());
        let mut generation = None;
        for row in &rows {
            let place = usize::try_from(column::<i64>(row, 1)? - 1).unwrap_or(usize::MAX);
            if column(row, 0)? {
                if let (Some(found), Some(name)) = (found.get_mut(place), stamps.get(place)) {
                    *found = read_stamp(row)?;
                    if column::<Option<bool>>(row, 3)? != Some(true) {
                        due.insert(*name);
                    }
                }
            } else if let Some(slot) = slots.get_mut(place) {
                *slot = read_slot(row)?;
                if slot.is_none() {
                    generation = column::<Option<Uuid>>(row, 2)?;
                    absent.push((place, column::<Time>(row, 4)?));
                }
            }
        }
        if !absent.is_empty() {
            let generation = match generation {
                Some(generation) => generation,
                None => self.make_generation().await?,
            };
            for (place, read) in absent {
                slots[place] = Some(Slot { entry: None, fence: absence(generation, read) });
            }
        }
        if !due.is_empty() {
            let made = match self.make_stamps(due).await {
                // A server that is full or read only cannot note that they are in use, and can be read all the same.
                Err(error) if !found.contains(&None) => {
                    tracing::debug!("postgres: stamps were not noted as used: {error}");
                    BTreeMap::new()
                }
                made => made?,
            };
            for (name, found) in stamps.iter().zip(&mut found) {
                *found = made.get(*name).copied().or(*found);
            }
        }
        let found = Found {
            entries: slots.into_iter().flatten().collect(),
            stamps: found.into_iter().flatten().collect(),
        };
        let is_whole = found.entries.len() == entries.len() && found.stamps.len() == stamps.len();
        if is_whole { Ok(found) } else { Err(strange("read")) }
    }

    async fn put_if(&self, put: Put<'_>) -> Result<Written, Error> {
        let (name, bytes, life) = (put.name, &*put.bytes, microseconds(put.time_to_live));
        let new = entry_fence();
        let written = |session: Arc<Session>| async move {
            let Some(fence) = put.fence else {
                return session.count(Query::Put, &[&name, &new, &bytes, &life]).await;
            };
            match seen(fence) {
                Seen::Absent(generation, read) => {
                    session.count(Query::PutAbsent, &[&name, &new, &bytes, &life, &generation, &read]).await
                }
                Seen::Present(fence) => {
                    session.count(Query::PutPresent, &[&name, &new, &bytes, &life, &fence]).await
                }
            }
        };
        let written = self.writes.run("write", written).await?;
        if written == 0 {
            return Ok(Written::Refused);
        }
        self.wrote(1);
        Ok(Written::Stored(Fence::from_bytes(new.0)))
    }

    async fn remove_many(&self, entries: &[&str], hold: Duration) -> Result<(), Error> {
        let names: Vec<&str> = entries.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        if names.is_empty() {
            return Ok(());
        }
        let (names, fence, hold) = (&names, entry_fence(), microseconds(hold));
        self.writes
            .run(
                "remove",
                |session| async move { session.count(Query::Remove, &[names, &fence, &hold]).await },
            )
            .await?;
        self.wrote(names.len());
        Ok(())
    }

    async fn restamp(&self, stamps: &[Restamp<'_>]) -> Result<(), Error> {
        // One change of each: what comes later in the list is done to what came before.
        let mut changes = BTreeMap::<&str, (Invalidation, Stamp)>::new();
        for Restamp { name, invalidation, stamp } in stamps {
            let change = changes.entry(name).or_insert((*invalidation, *stamp));
            let removes = change.0 == Invalidation::Remove || *invalidation == Invalidation::Remove;
            let whole = if removes { Invalidation::Remove } else { Invalidation::Expire };
            *change = (whole, change.1.after(*invalidation, *stamp));
        }
        let of = |invalidation| {
            let of_it = changes.iter().filter(move |(_, change)| change.0 == invalidation);
            of_it.map(|(name, change)| (*name, change.1)).collect()
        };
        self.restamp_all(Query::RemoveStamps, &of(Invalidation::Remove)).await?;
        self.restamp_all(Query::ExpireStamps, &of(Invalidation::Expire)).await
    }

    async fn ping(&self) -> Result<(), Error> {
        // Reading nothing makes a connection ready to read, so that the first read need not wait for one.
        let nothing: &[&str] = &[];
        let (rows, _) = tokio::try_join!(
            self.writes.run("ping", |session| async move { session.rows(Query::Ping, &[]).await }),
            self.reads
                .run("ping", |session| async move { session.rows(Query::Read, &[&nothing, &nothing]).await }),
        )?;
        let Some(row) = rows.first() else {
            return Err(strange("ping"));
        };
        is_known(column(row, 0)?)?;
        if column(row, 1)? {
            return Err(Error::new(ErrorKind::Refused, "postgres refused (ping): it is read only"));
        }
        if !column::<bool>(row, 2)? {
            let problem =
                "postgres refused (ping): the user may not read, insert, update and delete in the tables";
            return Err(Error::new(ErrorKind::Refused, problem));
        }
        Ok(())
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("tables", &self.tables)
            .field("reads", &self.reads)
            .field("writes", &self.writes)
            .finish_non_exhaustive()
    }
}

/// Everything that is asked of the server, each prepared once on each connection that asks it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Query {
    Read,
    MakeGeneration,
    MakeStamps,
    Put,
    PutAbsent,
    PutPresent,
    Remove,
    RemoveStamps,
    ExpireStamps,
    PurgeEntries,
    PurgeStamps,
    Ping,
}

impl Query {
    pub(super) const COUNT: usize = Self::Ping as usize + 1;

    /// The time of every statement is the time at which it came in: one that had to wait for a lock errs to the
    /// short side.
    pub(super) fn sql(self, tables: &Tables) -> String {
        let (entries, stamps, versions) = (tables.entries(), tables.stamps(), tables.versions());
        let now = "statement_timestamp()";
        // Lives are given in microseconds.
        let expires = format!("{now} + $4::bigint * interval '1 microsecond'");
        match self {
            // The generation is looked up only for the sake of an entry that is not there.
            Self::Read => format!(
                "SELECT false, n.place, coalesce(e.fence, (SELECT g.fence FROM {entries} g WHERE g.name = '')),
                        e.name IS NOT NULL, {now}, e.expires,
                        CASE WHEN e.expires > {now} THEN e.bytes END, NULL::bigint, NULL::bigint
                 FROM unnest($1::text[]) WITH ORDINALITY AS n(name, place)
                 LEFT JOIN {entries} e ON e.name = n.name
                 UNION ALL
                 SELECT true, n.place, NULL, s.used > {now} - {STAMP_IS_DUE}, {now}, NULL, NULL, s.removed, s.expired
                 FROM unnest($2::text[]) WITH ORDINALITY AS n(name, place)
                 LEFT JOIN {stamps} s ON s.name = n.name"
            ),
            // An update that changes nothing, because only what is written is returned.
            Self::MakeGeneration => format!(
                "INSERT INTO {entries} AS e (name, fence, bytes, expires) VALUES ('', $1, NULL, 'infinity')
                 ON CONFLICT (name) DO UPDATE SET fence = e.fence RETURNING e.fence"
            ),
            Self::MakeStamps => format!(
                "INSERT INTO {stamps} AS s (name, removed, expired, used)
                 SELECT n.name, n.removed, n.expired, {now}
                 FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS n(name, removed, expired)
                 ON CONFLICT (name) DO UPDATE SET used = excluded.used RETURNING s.name, s.removed, s.expired"
            ),
            Self::Put => format!(
                "INSERT INTO {entries} (name, fence, bytes, expires) VALUES ($1, $2, $3, {expires})
                 ON CONFLICT (name) DO UPDATE
                 SET fence = excluded.fence, bytes = excluded.bytes, expires = excluded.expires"
            ),
            Self::PutAbsent => format!(
                "INSERT INTO {entries} (name, fence, bytes, expires)
                 SELECT $1::text, $2::uuid, $3::bytea, {expires}
                 WHERE EXISTS (SELECT FROM {entries} g WHERE g.name = '' AND g.fence = $5::uuid)
                   AND $6::timestamptz BETWEEN {now} - {FENCE_LIFE} AND {now}
                 ON CONFLICT (name) DO NOTHING"
            ),
            Self::PutPresent => format!(
                "UPDATE {entries} SET fence = $2, bytes = $3, expires = {expires}
                 WHERE name = $1::text AND fence = $5::uuid"
            ),
            Self::Remove => format!(
                "INSERT INTO {entries} (name, fence, bytes, expires)
                 SELECT n.name, $2::uuid, NULL, {now} + $3::bigint * interval '1 microsecond'
                 FROM unnest($1::text[]) AS n(name)
                 ON CONFLICT (name) DO UPDATE
                 SET fence = excluded.fence, bytes = excluded.bytes, expires = excluded.expires"
            ),
            Self::RemoveStamps | Self::ExpireStamps => {
                let removed = if matches!(self, Self::RemoveStamps) { "removed = excluded.removed," } else { "" };
                format!(
                    "INSERT INTO {stamps} (name, removed, expired, used)
                     SELECT n.name, n.removed, n.expired, {now}
                     FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS n(name, removed, expired)
                     ON CONFLICT (name) DO UPDATE
                     SET {removed} expired = excluded.expired, used = excluded.used"
                )
            }
            Self::PurgeEntries => purge(&entries, "expires", DEAD_LIFE),
            Self::PurgeStamps => purge(&stamps, "used", STAMP_LIFE),
            Self::Ping => format!(
                "SELECT v.version, current_setting('transaction_read_only')::boolean,
                        (SELECT bool_and(has_table_privilege(t.name, p.privilege))
                         FROM (VALUES ('{entries}'), ('{stamps}')) AS t(name),
                              (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) AS p(privilege))
                 FROM {versions} v"
            ),
        }
    }
}

/// Locks a batch without waiting for anybody, then deletes it.
fn purge(table: &str, column: &str, life: &str) -> String {
    format!(
        "WITH dead AS MATERIALIZED (
             SELECT name FROM {table} WHERE {column} < statement_timestamp() - {life}
             ORDER BY {column} LIMIT $1::bigint FOR UPDATE SKIP LOCKED
         )
         DELETE FROM {table} t USING dead WHERE t.name = dead.name"
    )
}

/// What a fence saw.
enum Seen {
    Absent(Uuid, Time),
    Present(Uuid),
}

/// What the fence of an absence and a generation begin with.
const ABSENT: u8 = b'A';
/// What the fence of a row begins with.
const PRESENT: u8 = b'P';

/// The first half is the table's, the second the time of the reading.
fn absence(generation: Uuid, read: Time) -> Fence {
    let mut fence = generation.0;
    fence[8..].copy_from_slice(&read.0.to_be_bytes());
    Fence::from_bytes(fence)
}

fn seen(fence: Fence) -> Seen {
    let mut bytes = fence.to_bytes();
    if bytes[0] != ABSENT {
        return Seen::Present(Uuid(bytes));
    }
    let mut read = [0; 8];
    read.copy_from_slice(&bytes[8..]);
    bytes[8..].fill(0);
    Seen::Absent(Uuid(bytes), Time(i64::from_be_bytes(read)))
}

fn generation() -> Uuid {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&fastrand::u64(..).to_be_bytes());
    bytes[0] = ABSENT;
    Uuid(bytes)
}

fn entry_fence() -> Uuid {
    let mut bytes = fastrand::u128(..).to_be_bytes();
    bytes[0] = PRESENT;
    Uuid(bytes)
}

/// The slot of a row, if it is one of the table.
fn read_slot(row: &Row) -> Result<Option<Slot>, Error> {
    if !column(row, 3)? {
        return Ok(None);
    }
    let (fence, now, expires): (Uuid, Time, Time) = (column(row, 2)?, column(row, 4)?, column(row, 5)?);
    let remaining = expires.since(now).min(MOST_LIFE);
    let bytes: Option<&[u8]> = column(row, 6)?;
    let entry = bytes
        .filter(|_| !remaining.is_zero())
        .map(|bytes| Stored { bytes: Bytes::copy_from_slice(bytes), remaining });
    Ok(Some(Slot { entry, fence: Fence::from_bytes(fence.0) }))
}

/// The stamp of a row, if it is one of the table.
fn read_stamp(row: &Row) -> Result<Option<Stamp>, Error> {
    let (removed, expired): (Option<i64>, Option<i64>) = (column(row, 7)?, column(row, 8)?);
    Ok(removed.zip(expired).map(|(removed, expired)| stamp(removed, expired)))
}

/// The two halves of a stamp, as columns: to expire is to write the second.
fn halves(stamp: Stamp) -> (i64, i64) {
    let bytes = stamp.to_bytes();
    let half = |from| {
        let mut half = [0; 8];
        half.copy_from_slice(&bytes[from..from + 8]);
        i64::from_le_bytes(half)
    };
    (half(0), half(8))
}

fn stamp(removed: i64, expired: i64) -> Stamp {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&removed.to_le_bytes());
    bytes[8..].copy_from_slice(&expired.to_le_bytes());
    Stamp::from_bytes(bytes)
}

/// A value of a row, in the place where the query has it.
pub(super) fn column<'a, T: FromSql<'a>>(row: &'a Row, index: usize) -> Result<T, Error> {
    row.try_get(index).map_err(|error| super::sorted("read", error))
}

/// Tables that somebody else has made, or emptied of what belongs there.
fn strange(operation: &str) -> Error {
    let problem = "its tables are not as `PostgresStore::migrate` makes them";
    Error::new(ErrorKind::Refused, format!("postgres refused ({operation}): {problem}"))
}

/// Rounded down, so that no life grows.
fn microseconds(duration: Duration) -> i64 {
    i64::try_from(duration.min(MOST_LIFE).as_micros()).unwrap_or(i64::MAX)
}

/// 16 bytes, in the type that PostgreSQL keeps without a length.
#[derive(Clone, Copy, Debug)]
struct Uuid([u8; 16]);

/// The server's time, in microseconds of its own era. Only differences mean something here.
#[derive(Clone, Copy, Debug)]
struct Time(i64);

impl Time {
    fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;

impl ToSql for Uuid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::UUID
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Uuid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        Ok(Self(raw.try_into()?))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::UUID
    }
}

impl ToSql for Time {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.put_i64(self.0);
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Time {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }
}
