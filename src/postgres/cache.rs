//! The remote tier of a cache in PostgreSQL.
//!
//! An entry is a row: its name, a *fence* of 16 bytes that no other write has, its bytes, and when it expires by the
//! server's clock. A removal leaves the row without bytes. To write conditionally is to update the row of that
//! name and fence, which one of many can do.
//!
//! Reading writes nothing, so an absence has no row; what its fence is made of is in `fence.rs`.
//!
//! What takes longer to load than 10 minutes is refused, which errs to the safe side. A call that is made again because
//! its answer was lost may have been carried out, and somebody else's invalidation after it. What compares nothing draws its
//! nonces anew then, for the same ones would undo that; what compares has one fence for all attempts, and knows by it what
//! the one before wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio_postgres::{
    Row, Socket,
    tls::{MakeTlsConnect, NoTls, TlsConnect},
    types::{FromSql, ToSql},
};

use super::{
    connector::Connector,
    fault::sorted,
    fence::{Seen, Time, Uuid, absence, entry_fence, generation, seen},
    query::Query,
    schema::{Tables, is_known},
    shared::{Flag, Pool, Session},
};
use crate::{
    Error, ErrorKind,
    cache::{Fence, Found, Invalidation, Put, Restamp, Slot, Stamp, Store, Stored, Written},
    clock::Clock,
    generation::Generation,
};

/// Enough that two cores of the server can read, and that one big answer does not hold up every small one.
const READERS: u32 = 2;
const WRITERS: u32 = 1;

/// No entry lives longer, whatever its row says.
const MOST_LIFE: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// One row written in so many starts a purge.
const PURGE_EVERY: u32 = 500;
/// How many rows one statement deletes at most. Writes wait for it, and large rows take as long as many small ones: it
/// deletes half as many when it took longer than [`PURGE_LONG`], and twice as many when it did not. Of so few it is the
/// way to the server that takes long.
const PURGE_BATCH: u32 = 500;
const PURGE_FEW: u32 = 50;
const PURGE_LONG: Duration = Duration::from_millis(50);
/// A purge ends after so many rows, or after so long. After that a statement is not waited for, either: the server is taken
/// to be away.
const PURGE_MOST: u64 = 10_000;
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
    purging: Arc<Purging>,
}

/// What is known of purges.
struct Purging {
    is_on: Arc<AtomicBool>,
    /// How many rows the next statement deletes at most.
    batch: AtomicU32,
    /// Whether the last one failed.
    fails: AtomicBool,
    clock: Clock,
}

impl PostgresStore {
    /// A store at `postgres://[user[:password]@]host[:port][/database]`.
    ///
    /// Over TLS if the URL says `sslmode=require` or `sslmode=verify-full`, which takes the feature `postgres-tls`: the
    /// certificate and its name are checked against the system's roots. What else the driver understands is in the
    /// page of `tokio_postgres::Config`.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) if the URL is not of that form, or asks for TLS without the
    /// feature. Whether there is a server shows when the cache is built.
    pub fn new(url: &str) -> Result<Self, Error> {
        Ok(Self::at(Connector::of_store(url, NoTls, false)?, Tables::default()))
    }

    /// The same with a connector of your own for tokio-postgres 0.7, such as one with certificates of clients.
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
        Ok(Self::at(Connector::of_store(url, tls, true)?, Tables::default()))
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
        let generation = Arc::new(Generation::new("postgres", Clock::system()));
        let pool = |size| Pool::new(connector.clone(), Arc::clone(&tables), size, &generation);
        let (reads, writes) = (pool(READERS), pool(WRITERS));
        let purging = Arc::new(Purging {
            is_on: Arc::default(),
            batch: AtomicU32::new(PURGE_BATCH),
            fails: AtomicBool::new(false),
            clock: Clock::system(),
        });
        Self { connector, tables, reads, writes, purging }
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
    /// At most 10,000 entries and 500 stamps in one call, or what ten seconds suffice for; in batches of at most 500, or of
    /// as many as take some 50 ms, since writes wait meanwhile. What others hold locked is left for the next.
    ///
    /// # Errors
    ///
    /// The server's.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has deleted whole batches.
    pub async fn purge(&self) -> Result<u64, Error> {
        let Purging { batch, clock, .. } = &*self.purging;
        let (began, mut purged) = (clock.now(), 0);
        while purged < PURGE_MOST && clock.now().since(began) < PURGE_TIMEOUT {
            let most = batch.load(Ordering::Relaxed);
            let began = clock.now();
            let rows = match self.purge_batch(Query::PurgeEntries, most).await {
                Ok(rows) => rows,
                // By the server's own time-out for a statement: as many would take as long the next time.
                Err(error) if error.kind() == ErrorKind::TimedOut && most > 1 => {
                    batch.store((most / 4).max(1), Ordering::Relaxed);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let took = clock.now().since(began);
            let next = if took > PURGE_LONG { (most / 2).max(PURGE_FEW.min(most)) } else { most * 2 };
            batch.store(next.min(PURGE_BATCH), Ordering::Relaxed);
            purged += rows;
            if rows < u64::from(most) {
                break;
            }
        }
        Ok(purged + self.purge_batch(Query::PurgeStamps, PURGE_BATCH).await?)
    }

    async fn purge_batch(&self, query: Query, most: u32) -> Result<u64, Error> {
        let most = i64::from(most);
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
        let Some(purging) = Flag::raise(&self.purging.is_on) else { return };
        let store = self.clone();
        tokio::spawn(async move {
            let purged = store.purge().await;
            let failed = store.purging.fails.swap(purged.is_err(), Ordering::Relaxed);
            match purged {
                Ok(purged) => tracing::debug!(purged, "postgres: rows of what is dead were deleted"),
                // A server that is away is told of elsewhere.
                Err(error) if failed || error.kind() == ErrorKind::Unavailable => {
                    tracing::debug!("postgres: purge failed: {error}");
                }
                Err(error) => tracing::warn!("postgres: the tables grow, for a purge failed: {error}"),
            }
            drop(purging);
        });
    }

    /// The generation of the table, made if there is none.
    async fn make_generation(&self) -> Result<Uuid, Error> {
        let made = |session: Arc<Session>| async move {
            let generation = generation();
            let rows = session.rows(Query::MakeGeneration, &[&generation]).await?;
            Ok(rows.first().and_then(|row| row.try_get(0).ok()).unwrap_or(generation))
        };
        self.writes.run("read", made).await
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

    /// Reads, or peeks, in one trip; what turns out to be absent may take a second one.
    async fn look(&self, query: Query, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        let rows = self
            .reads
            .run("read", |session| async move { session.rows(query, &[&entries, &stamps]).await })
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

    async fn restamp_all(&self, query: Query, changes: &BTreeMap<&str, Stamp>) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = changes.keys().copied().collect();
        let (names, was_sent) = (&names, &AtomicBool::new(false));
        let restamped = |session: Arc<Session>| async move {
            let is_repeated = was_sent.swap(true, Ordering::Relaxed);
            let stamp = |stamp: &Stamp| if is_repeated { Stamp::random() } else { *stamp };
            let (removed, expired): (Vec<i64>, Vec<i64>) =
                changes.values().map(|change| halves(stamp(change))).unzip();
            session.count(query, &[names, &removed, &expired]).await
        };
        self.writes.run("restamp", restamped).await.map(drop)
    }
}

impl Store for PostgresStore {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        self.look(Query::Read, entries, stamps).await
    }

    async fn peek_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        self.look(Query::Peek, entries, stamps).await
    }

    async fn put_if(&self, put: Put<'_>) -> Result<Written, Error> {
        let (name, bytes, life) = (put.name, &*put.bytes, microseconds(put.time_to_live));
        let fence = put.fence.map(seen);
        // One for all attempts where something is compared: one whose answer was lost is known by it.
        let first = entry_fence();
        let tries = AtomicU32::new(0);
        let written = |session: Arc<Session>| {
            let is_repeated = tries.fetch_add(1, Ordering::Relaxed) > 0;
            let new = if is_repeated && fence.is_none() { entry_fence() } else { first };
            let fence = &fence;
            async move {
                let row = match fence {
                    None => {
                        let written = session.count(Query::Put, &[&name, &new, &bytes, &life]).await?;
                        return Ok((written, new));
                    }
                    Some(Seen::Absent(generation, read, row)) => {
                        let values: [&(dyn ToSql + Sync); 6] = [&name, &new, &bytes, &life, generation, read];
                        let written = session.count(Query::PutAbsent, &values).await?;
                        if written > 0 {
                            return Ok((written, new));
                        }
                        row
                    }
                    Some(Seen::Present(row)) => row,
                };
                let mut written =
                    session.count(Query::PutPresent, &[&name, &new, &bytes, &life, row]).await?;
                if written == 0 && is_repeated {
                    written = session.count(Query::PutPresent, &[&name, &new, &bytes, &life, &new]).await?;
                }
                Ok((written, new))
            }
        };
        let (written, new) = self.writes.run("write", written).await?;
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
        let (names, hold) = (&names, microseconds(hold));
        let removed = |session: Arc<Session>| async move {
            session.count(Query::Remove, &[names, &entry_fence(), &hold]).await
        };
        self.writes.run("remove", removed).await?;
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
    row.try_get(index).map_err(|error| sorted("read", error))
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
