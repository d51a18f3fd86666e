//! The remote tier of a cache in Redis.
//!
//! An entry is one string: 16 bytes that no other write has, then the cache's bytes. A removal leaves a
//! string of 16 such bytes alone, for as long as a load that began before it may still come to write: the
//! fence of a name is simply what its string begins with. A stamp is a string of 16 bytes.

use std::{fmt, sync::Arc, time::Duration};

use ::redis::{FromRedisValue, Pipeline, RedisError, Script, Value, aio::MultiplexedConnection, pipe};
use bytes::Bytes;

use super::pool::Pool;
use crate::{
    Error,
    cache::{Fence, Found, Invalidation, Put, Restamp, Slot, Stamp, Store, Stored, Written},
};

/// What an entry's string begins with.
const ENTRY: u8 = b'E';
/// What the string of an absent entry begins with, once somebody has looked for it: absence itself would be no
/// fence, for a removal that was forgotten (it expired, or was evicted) leaves absence too.
const ABSENT: u8 = b'A';
/// How long a load may take and still be stored. A shorter one errs to the safe side.
const ABSENT_LIFE: Duration = Duration::from_secs(2 * 60);
/// What the string of a removed entry begins with.
const REMOVED: u8 = b'X';
const HEADER: usize = 16;
/// Longer than any entry lives. A stamp that is in use is given this life again from time to time; one that was
/// forgotten comes back as another, and what depended on it is a miss.
const STAMP_LIFE: Duration = Duration::from_secs(31 * 24 * 60 * 60);
/// One read of a stamp in so many prolongs its life.
const PROLONG: u32 = 1_000;

/// Compare what the string begins with, and write.
const PUT_IF: &str = r"
local now = redis.call('GETRANGE', KEYS[1], 0, 15)
if #now == 0 or now .. string.rep('\0', 16 - #now) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
";

/// A [`Store`] in Redis. Connects when it is first used.
#[derive(Clone)]
pub struct RedisStore {
    pool: Pool,
    prefix: String,
    put_if: Script,
}

impl RedisStore {
    /// A store at `redis://[user:password@]host[:port][/db]`.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) if the URL is not of that form. Whether there is a
    /// server shows when the cache is built.
    pub fn new(url: &str) -> Result<Self, Error> {
        Ok(Self { pool: Pool::new(url)?, prefix: "mcp-perf".to_owned(), put_if: Script::new(PUT_IF) })
    }

    /// What every name in Redis begins with: `mcp-perf` unless set. Programs that share a Redis and not their
    /// caches need different ones.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) unless it is 1 to 64 letters, digits, `-`, `_`, `.` or
    /// `:`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Result<Self, Error> {
        self.prefix = prefix.into();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        if (1..=64).contains(&self.prefix.len()) && self.prefix.bytes().all(fits) {
            Ok(self)
        } else {
            Err(Error::configuration("prefix", "1 to 64 letters, digits, `-`, `_`, `.` or `:`"))
        }
    }

    fn name(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    /// Reads stamps that were not there, after writing random ones where there still are none.
    async fn make_stamps(&self, names: &[String]) -> Result<Vec<Stamp>, Error> {
        let mut pipeline = pipe();
        for name in names {
            let fresh = Stamp::random().to_bytes();
            pipeline
                .cmd("SET")
                .arg(name)
                .arg(&fresh)
                .arg("NX")
                .arg("PX")
                .arg(milliseconds(STAMP_LIFE))
                .ignore();
            pipeline.get(name);
        }
        let stamps: Vec<Option<Vec<u8>>> = self.pool.run("make stamps", pipeline, query).await?;
        // What is no stamp was not written by us, and equals nothing.
        Ok(stamps.into_iter().map(|bytes| stamp(bytes.as_deref()).unwrap_or_else(Stamp::random)).collect())
    }

    async fn run(&self, operation: &'static str, pipeline: Pipeline) -> Result<(), Error> {
        self.pool.run(operation, pipeline, query::<()>).await
    }
}

impl Store for RedisStore {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        let mut pipeline = pipe();
        for entry in entries {
            let name = self.name(entry);
            let absent = header(ABSENT);
            pipeline.cmd("SET").arg(&name).arg(&absent).arg("NX").arg("PX").arg(milliseconds(ABSENT_LIFE));
            pipeline.get(&name).pttl(name);
        }
        let stamps: Vec<String> = stamps.iter().map(|stamp| self.name(stamp)).collect();
        let prolongs = fastrand::u32(..PROLONG) == 0;
        for stamp in &stamps {
            if prolongs {
                pipeline.cmd("GETEX").arg(stamp).arg("PX").arg(milliseconds(STAMP_LIFE));
            } else {
                pipeline.get(stamp);
            }
        }
        // A server that is full or a replica refuses to note an absence, and can be read all the same.
        pipeline.ignore_errors();
        let answers: Vec<Value> = self.pool.run("read", pipeline, query).await?;
        let (of_entries, of_stamps) = answers.split_at_checked(3 * entries.len()).unwrap_or_default();
        let slots = of_entries.chunks_exact(3).map(|answer| slot(&answer[1], &answer[2])).collect();
        let mut found: Vec<Option<Stamp>> = of_stamps.iter().map(|answer| stamp(bytes(answer))).collect();
        let missing: Vec<usize> = (0..found.len()).filter(|index| found[*index].is_none()).collect();
        if !missing.is_empty() {
            let names: Vec<String> = missing.iter().map(|index| stamps[*index].clone()).collect();
            for (index, made) in missing.iter().zip(self.make_stamps(&names).await?) {
                found[*index] = Some(made);
            }
        }
        Ok(Found { entries: slots, stamps: found.into_iter().flatten().collect() })
    }

    async fn put_if(&self, put: Put<'_>) -> Result<Written, Error> {
        let name = self.name(put.name);
        let mut bytes = Vec::with_capacity(HEADER + put.bytes.len());
        let header = header(ENTRY);
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&put.bytes);
        let stored = Written::Stored(Fence::from_bytes(header));
        let life = milliseconds(put.time_to_live);
        let Some(fence) = put.fence else {
            let mut pipeline = pipe();
            pipeline.pset_ex(name, bytes, life).ignore();
            return self.run("write", pipeline).await.map(|()| stored);
        };
        let mut call = self.put_if.key(name);
        call.arg(&fence.to_bytes()).arg(bytes).arg(life);
        let written: i64 = self
            .pool
            .run("write", call, |mut redis, call| async move { call.invoke_async(&mut redis).await })
            .await?;
        Ok(if written == 1 { stored } else { Written::Refused })
    }

    async fn remove_many(&self, entries: &[&str], hold: Duration) -> Result<(), Error> {
        let mut pipeline = pipe();
        for entry in entries {
            pipeline.pset_ex(self.name(entry), &header(REMOVED), milliseconds(hold)).ignore();
        }
        self.run("remove", pipeline).await
    }

    async fn restamp(&self, stamps: &[Restamp<'_>]) -> Result<(), Error> {
        let mut pipeline = pipe();
        pipeline.atomic();
        for Restamp { name, invalidation, stamp } in stamps {
            let (name, life) = (self.name(name), milliseconds(STAMP_LIFE));
            let set = pipeline.cmd("SET").arg(&name).arg(&stamp.to_bytes()).arg("PX").arg(life);
            if *invalidation == Invalidation::Expire {
                set.arg("NX").ignore();
                pipeline.setrange(name, 8, &stamp.to_bytes()[8..]).ignore();
            } else {
                set.ignore();
            }
        }
        self.run("restamp", pipeline).await
    }

    async fn ping(&self) -> Result<(), Error> {
        let mut pipeline = pipe();
        pipeline.ping().ignore();
        self.run("ping", pipeline).await
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.prefix)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

async fn query<T: FromRedisValue>(
    mut redis: MultiplexedConnection,
    pipeline: Arc<Pipeline>,
) -> Result<T, RedisError> {
    pipeline.query_async(&mut redis).await
}

/// 16 bytes that no other write begins with.
fn header(kind: u8) -> [u8; HEADER] {
    let mut header = fastrand::u128(..).to_be_bytes();
    header[0] = kind;
    header
}

fn slot(content: &Value, remaining: &Value) -> Slot {
    let content = bytes(content).unwrap_or_default();
    let mut fence = [0; HEADER];
    let begins = content.len().min(HEADER);
    fence[..begins].copy_from_slice(&content[..begins]);
    if content.is_empty() {
        fence = header(ABSENT); // equals nothing
    }
    let remaining = match remaining {
        Value::Int(milliseconds) => Duration::from_millis(u64::try_from(*milliseconds).unwrap_or(0)),
        _ => Duration::ZERO,
    };
    let entry = (content.len() >= HEADER && content[0] == ENTRY && !remaining.is_zero())
        .then(|| Stored { bytes: Bytes::copy_from_slice(&content[HEADER..]), remaining });
    Slot { entry, fence: Fence::from_bytes(fence) }
}

fn stamp(bytes: Option<&[u8]>) -> Option<Stamp> {
    bytes?.try_into().ok().map(Stamp::from_bytes)
}

fn bytes(answer: &Value) -> Option<&[u8]> {
    match answer {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

/// Rounded down, so that no life grows; but zero, which Redis refuses, becomes the least.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64)
}
