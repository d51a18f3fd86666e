//! The remote tier of a cache in Redis.
//!
//! # What lies where
//!
//! ```text
//! entry     'E', 15 bytes | dies at, 16 digits | lives, 16 digits | the cache's bytes
//! absent    'A', 15 bytes
//! removed   'X', 15 bytes
//! stamp     16 bytes
//! ```
//!
//! The first 16 bytes are such as no other write has, and are the fence of the name. A removal leaves a string of them
//! alone, for as long as a load that began before it may still come to write. When an entry dies is written by the
//! server, in milliseconds of its own clock, so that one `MGET` and the server's `TIME` tell what is left; how long it
//! lives bounds that, however the clock is set. All names of a store have one hash tag, `{prefix}`, and so lie in one
//! slot of a cluster, where commands and scripts may span them.
//!
//! What is shown of the nonces, those of stamps and fences, depends on the history of the server's data as well:
//! `history.rs` says why, and how it is learned.
//!
//! # Trips
//!
//! A read is one trip, of entries and stamps at once, and reads that are made at the same time share it. Only what turned
//! out to be absent takes a second one, which writes a nonce in its place and reads that again; none for a second after a
//! server would not write it. A write is one call of a script.

use std::{
    error::Error as _,
    fmt,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, Bytes};

use super::{
    address::Address,
    batch::{Names, Value, Values},
    connection::Connection,
    fault::Fault,
    history::History,
    pool::{Naming, Pool, Script, Size},
    stats::Stats,
    wire::{self, Commands, LARGE, Token, unsigned},
};
use crate::{
    Error, ErrorKind,
    cache::{Fence, Found, Invalidation, Put, Restamp, Slot, Stamp, Store, Stored, Written},
    sync::{Mutex, lock},
};

/// What an entry's string begins with.
const ENTRY: u8 = b'E';
/// What the string of an absent entry begins with, once somebody has looked for it: absence itself would be no
/// fence, for a removal that was forgotten (it expired, or was evicted) leaves absence too.
const ABSENT: u8 = b'A';
/// How long a load may take and still be stored. A shorter one errs to the safe side.
const ABSENT_LIFE: Duration = Duration::from_secs(2 * 60);
/// The fence of an absence that could not be noted, which the server was not asked for: it was full, say.
const UNNOTED: [u8; FENCE] = *b"unnoted absence.";
/// What the string of a removed entry begins with.
const REMOVED: u8 = b'X';
const FENCE: usize = 16;
const DIGITS: usize = 16;
const HEADER: usize = FENCE + 2 * DIGITS;
/// Longer than any entry lives. A stamp that is in use is given this life again from time to time; one that was
/// forgotten comes back as another, and what depended on it is a miss.
const STAMP_LIFE: Duration = Duration::from_secs(31 * 24 * 60 * 60);
/// One read of a stamp in so many prolongs its life.
const PROLONG: u32 = 1_000;
/// A hundred years: what Redis can add to its clock, and 16 digits can hold.
const LONGEST_LIFE: u64 = 100 * 365 * 24 * 60 * 60 * 1_000;
/// Beyond this many names a read is made in pieces, so that no single command holds the server up.
const MOST_NAMES: usize = 1_000;

/// Compare what the string begins with, and write. An error of a command is returned, not raised: the server puts
/// words before a raised one that hide its kind. What begins as it is to be written now was written by the attempt
/// before, of which the answer was lost.
///
/// The string goes a moment before the entry dies. It is there until the end of a millisecond of the server's clock, and
/// a read rounds that clock up, so it would find the dead entry for two of them more, and answer with a fence that is gone
/// before anybody can write with it. It goes at a time, and not after one: the millisecond may be over before it is written.
static PUT: LazyLock<Text> = LazyLock::new(|| {
    Text::new(
        r"
if ARGV[1] ~= '' then
  local now = redis.pcall('GETRANGE', KEYS[1], 0, 15)
  if type(now) == 'table' then
    if string.find(now.err, 'WRONGTYPE', 1, true) then return 0 end
    return now
  end
  if now == ARGV[2] then return {ok = 'OK'} end
  if #now == 0 or now .. string.rep('\0', 16 - #now) ~= ARGV[1] then return 0 end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local dies = now + ARGV[3]
local life = string.format('%016.0f%016.0f', dies, ARGV[3])
local goes = string.format('%.0f', math.max(dies - 2, now + 1))
return redis.pcall('SET', KEYS[1], ARGV[2] .. life .. ARGV[4], 'PXAT', goes)
",
    )
});

/// Write stamps, or the second halves of those that are there.
static RESTAMP: LazyLock<Text> = LazyLock::new(|| {
    Text::new(
        r"
for index, name in ipairs(KEYS) do
  local stamp = ARGV[2 * index + 1]
  if ARGV[2 * index] == 'E' then
    local now = redis.pcall('GETRANGE', name, 0, -1)
    if type(now) == 'string' and #now == 16 then
      stamp = string.sub(now, 1, 8) .. string.sub(stamp, 9, 16)
    end
  end
  local written = redis.pcall('SET', name, stamp, 'PX', ARGV[1])
  if written.err then return written end
end
return 1
",
    )
});

/// A script, and what the server knows it by.
struct Text {
    text: &'static str,
    digest: String,
}

/// A [`Store`] in Redis. Connects when it is first used.
///
/// Clones share its connections, and so do all caches that are given one of them: what they ask for at the same time
/// travels together.
#[derive(Clone)]
pub struct RedisStore {
    /// And nothing else: a clone is one count more.
    pool: Pool,
}

impl RedisStore {
    /// A store at `redis://[user:password@]host[:port][/database]`, or `redis+unix:///path[?db=…&user=…&pass=…]`.
    ///
    /// `rediss://` is TLS, with the feature `redis-tls`. User and password are percent-encoded where they have to be.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) if the URL is not of that form. Whether there is a
    /// server shows when the cache is built.
    pub fn new(url: &str) -> Result<Self, Error> {
        Self { pool: Pool::new(Address::parse(url)?, None, Naming::default()) }.prefix("mcp-perf")
    }

    /// What every name in Redis begins with, in braces, which are its hash tag: `mcp-perf` unless set. Programs that share a Redis and not their
    /// caches need different ones.
    ///
    /// To be said before the store is first used: it makes connections of its own.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) unless it is 1 to 64 letters, digits, `-`, `_`, `.` or
    /// `:`.
    pub fn prefix(self, prefix: impl Into<String>) -> Result<Self, Error> {
        let prefix = prefix.into();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        if (1..=64).contains(&prefix.len()) && prefix.bytes().all(fits) {
            let names =
                Naming { tag: format!("{{{prefix}}}:").into(), prefix: Some(prefix.into_boxed_str()) };
            Ok(Self::at(self.pool.address().clone(), names))
        } else {
            Err(Error::configuration("prefix", "1 to 64 letters, digits, `-`, `_`, `.` or `:`"))
        }
    }

    /// What the server calls these connections in its `CLIENT LIST`: nothing unless set.
    ///
    /// A server that does not want to know is not asked again. To be said before the store is first used: connections
    /// that are open keep theirs, and this store makes its own.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) unless it is 1 to 64 printable ASCII characters, and no
    /// space.
    pub fn client_name(self, name: &str) -> Result<Self, Error> {
        if !(1..=64).contains(&name.len()) || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::configuration(
                "client_name",
                "1 to 64 printable ASCII characters, and no space",
            ));
        }
        let mut address = self.pool.address().clone();
        address.client_name = Some(name.into());
        Ok(Self::at(address, self.pool.names().clone()))
    }

    /// Whom to trust with `rediss://`: the certificates in this PEM, and no others. Unless set, the authorities that
    /// the system trusts.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) if it holds no certificate, or the URL is not one of TLS.
    #[cfg(feature = "redis-tls")]
    pub fn certificate_authority(self, pem: impl AsRef<[u8]>) -> Result<Self, Error> {
        let address = self.pool.address().clone().trusting(pem.as_ref())?;
        Ok(Self::at(address, self.pool.names().clone()))
    }

    /// What the connections are doing, and did so far: those of all clones.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.pool.stats()
    }

    fn at(address: Address, names: Naming) -> Self {
        Self { pool: Pool::new(address, Some(History::question(&names.tag)), names) }
    }

    /// What every name begins with.
    fn tag(&self) -> &str {
        &self.pool.names().tag
    }

    /// Reads everything in one trip, after running other commands, which are made for every attempt.
    async fn read(
        &self,
        size: Size,
        entries: &[&str],
        stamps: &[&str],
        before: impl Fn() -> Commands + Send + Sync,
    ) -> Result<Box<Values>, Error> {
        let send = |connection: &Connection, _| {
            let mut names = Names::with_capacity(entries.len() + stamps.len());
            for name in entries.iter().chain(stamps) {
                names.add(&[self.tag(), name]);
            }
            connection.read(names, before())
        };
        self.pool.call("read", size, send).await
    }

    fn script_call(&self, script: Script, text: &Text, names: &[&str], arguments: &[&[u8]]) -> Commands {
        match script {
            Script::ByDigest => self.script(b"EVALSHA", text.digest.as_bytes(), names, arguments),
            Script::InFull => self.script(b"EVAL", text.text.as_bytes(), names, arguments),
        }
    }

    fn script(&self, command: &[u8], script: &[u8], names: &[&str], arguments: &[&[u8]]) -> Commands {
        let size: usize = arguments.iter().map(|argument| argument.len() + 16).sum();
        let mut bytes = Vec::with_capacity(128 + script.len() + 128 * names.len() + size);
        wire::head(&mut bytes, 3 + names.len() + arguments.len());
        wire::bulk(&mut bytes, command);
        wire::bulk(&mut bytes, script);
        wire::bulk(&mut bytes, names.len().to_string().as_bytes());
        for name in names {
            wire::joined(&mut bytes, &[self.tag(), name]);
        }
        for argument in arguments {
            wire::bulk(&mut bytes, argument);
        }
        Commands { bytes, count: 1 }
    }

    /// Runs commands that are made for every attempt: the one before may have been carried out though its answer was
    /// lost, and another process may have written or invalidated something since, which the same nonce would undo where
    /// nothing is compared.
    async fn run(
        &self,
        operation: &'static str,
        size: Size,
        commands: impl Fn(Script, History) -> Commands + Send + Sync,
    ) -> Result<Vec<Token>, Error> {
        let send = |connection: &Connection, script| connection.run(commands(script, connection.history()));
        self.pool.call(operation, size, send).await
    }

    /// What is found, and when by the server's clock.
    async fn get_some(&self, entries: &[&str], stamps: &[&str]) -> Result<(Found, u64), Error> {
        let is_large = entries.iter().any(|name| self.pool.likely_size(name) == Size::Large);
        let size = if is_large { Size::Large } else { Size::Small };
        let prolonged = if fastrand::u32(..PROLONG) == 0 { stamps } else { &[] };
        let prolong = || {
            let mut before = Commands::default();
            for name in prolonged {
                before.add_named(b"PEXPIRE", &[self.tag(), name], &[&milliseconds(STAMP_LIFE)]);
            }
            before
        };
        let mut found = self.read(size, entries, stamps, prolong).await?;
        // Without a stamp nothing can be told. Without a note what is absent can, and is only not to be stored.
        let mut later = None;
        if found.lacks(entries.len()) || found.lacks(0) && !self.pool.notes_nothing() {
            // Boxed, so that those who find everything carry no room for it.
            (found, later) = Box::pin(self.note(size, entries, stamps, found)).await?;
        }
        let history = found.history;
        let (later_values, later_time) = later.map(|later| (later.values, later.time)).unwrap_or_default();
        let mut later_values = later_values.into_iter();
        let mut values = found.values.into_iter().map(|value| match value {
            // By the time at which it was read: the life that is left counts from before the question.
            None => (later_values.next().flatten(), later_time),
            value => (value, found.time),
        });
        let slots = entries.iter().zip(&mut values).map(|(name, (value, time))| {
            let is_large = value.as_ref().is_some_and(|value| value.len() >= LARGE);
            if is_large || size == Size::Large {
                self.pool.note_size(name, if is_large { Size::Large } else { Size::Small });
            }
            match value {
                None => Slot { entry: None, fence: Fence::from_bytes(UNNOTED) },
                value => slot(value.map(Bytes::from), time, history),
            }
        });
        let entries = slots.collect();
        // Another one each time would say that all of it was removed, each time.
        let unmade = || Error::new(ErrorKind::Refused, "redis refused (read): it noted no stamp");
        // What is no stamp was not written by us, and equals nothing.
        let stamp = |value: Value| stamp(Some(&value), history).unwrap_or_else(Stamp::random);
        let stamps = values.map(|(value, _)| value.map(stamp).ok_or_else(unmade));
        let stamps = stamps.collect::<Result<_, _>>()?;
        Ok((Found { entries, stamps }, found.time))
    }

    /// Notes what is absent, and reads it once more: returns what was found before, and what is in the place of what was
    /// missing.
    async fn note<'a>(
        &self,
        size: Size,
        entries: &[&'a str],
        stamps: &[&'a str],
        found: Box<Values>,
    ) -> Result<(Box<Values>, Option<Box<Values>>), Error> {
        let is_missing = |place: usize| found.values[place].is_none();
        let missing = |names: &[&'a str], from: usize| -> Vec<&'a str> {
            names
                .iter()
                .enumerate()
                .filter(|(place, _)| is_missing(from + place))
                .map(|(_, name)| *name)
                .collect()
        };
        let (absent, unmade) = (missing(entries, 0), missing(stamps, entries.len()));
        // A server that is full refuses to note an absence, and can be read all the same.
        let later = self.read(size, &absent, &unmade, || self.notes_of_absence(&absent, &unmade)).await?;
        self.pool.has_noted(!later.lacks(0));
        if later.history == found.history {
            return Ok((found, Some(later)));
        }
        // The one before tells nothing of this one.
        let found = self.read(size, entries, stamps, || self.notes_of_absence(entries, stamps)).await?;
        Ok((found, None))
    }

    /// What the strings of entries begin with. Not all of it at one time, and it need not be: an entry that is there
    /// has been there since the question, and a stamp has not changed since.
    async fn peek_some(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        let end = (HEADER - 1).to_string();
        // They come over another connection than the stamps if one broke meanwhile.
        let history = Mutex::new(History::default());
        let heads = self.run("read", Size::Small, |_, of| {
            *lock(&history) = of;
            let mut commands = Commands::default();
            for name in entries {
                commands.add_named(b"GETRANGE", &[self.tag(), name], &[b"0", end.as_bytes()]);
            }
            commands
        });
        let ((mut found, time), heads) = tokio::try_join!(self.get_some(&[], stamps), heads)?;
        let history = *lock(&history);
        let head = |token| match token {
            Token::Bytes(head) => slot(Some(head), time, history),
            _ => slot(None, time, history),
        };
        found.entries = heads.into_iter().map(head).collect();
        Ok(found)
    }

    /// Nonces in the place of whatever of this is absent.
    fn notes_of_absence(&self, entries: &[&str], stamps: &[&str]) -> Commands {
        let mut notes = Commands::default();
        let life = milliseconds(ABSENT_LIFE);
        for name in entries {
            notes.add_named(b"SET", &[self.tag(), name], &[&header(ABSENT), b"NX", b"PX", &life]);
        }
        let life = milliseconds(STAMP_LIFE);
        for name in stamps {
            let stamp = Stamp::random().to_bytes();
            notes.add_named(b"SET", &[self.tag(), name], &[&stamp, b"NX", b"PX", &life]);
        }
        notes
    }
}

impl Store for RedisStore {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        if entries.len() + stamps.len() <= MOST_NAMES {
            return self.get_some(entries, stamps).await.map(|(found, _)| found);
        }
        let mut found = Found::default();
        for stamps in stamps.chunks(MOST_NAMES) {
            found.stamps.extend(self.get_some(&[], stamps).await?.0.stamps);
        }
        for entries in entries.chunks(MOST_NAMES) {
            found.entries.extend(self.get_some(entries, &[]).await?.0.entries);
        }
        Ok(found)
    }

    async fn peek_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        if entries.len().max(stamps.len()) <= MOST_NAMES {
            return self.peek_some(entries, stamps).await;
        }
        let mut found = self.get_many(&[], stamps).await?;
        for entries in entries.chunks(MOST_NAMES) {
            found.entries.extend(self.peek_some(entries, &[]).await?.entries);
        }
        Ok(found)
    }

    async fn put_if(&self, put: Put<'_>) -> Result<Written, Error> {
        if put.fence.is_some_and(|fence| fence.to_bytes() == UNNOTED) {
            // That somebody else wrote is not known, and not what it means. Why it was not noted the server says now: it is
            // full, or the primary no longer, and then there is another connection.
            let life = milliseconds(ABSENT_LIFE);
            let note = |_, _| {
                let mut note = Commands::default();
                note.add_named(b"SET", &[self.tag(), put.name], &[&header(ABSENT), b"NX", b"PX", &life]);
                note
            };
            self.run("write", Size::Small, note).await?;
            self.pool.has_noted(true);
            let problem = "redis refused (write): it had noted no absence to be filled";
            return Err(Error::new(ErrorKind::Refused, problem));
        }
        let size = if put.bytes.len() >= LARGE { Size::Large } else { Size::Small };
        let life = milliseconds(put.time_to_live);
        // One for all attempts where something is compared: one whose answer was lost is known by it. In another history
        // it is nobody's: what was lost on the way there may be what it would be compared with.
        let first: Mutex<Option<(History, [u8; FENCE])>> = Mutex::default();
        let written = Mutex::new([0; FENCE]);
        let write = |script, history: History| {
            let fence = put.fence.map(|fence| history.veil(fence.to_bytes()));
            let header = match (&fence, &mut *lock(&first)) {
                (Some(_), Some((of, header))) if *of == history => *header,
                (_, first) => first.insert((history, header(ENTRY))).1,
            };
            let fence = fence.as_ref().map_or(&[][..], |fence| fence);
            *lock(&written) = history.veil(header);
            self.script_call(script, &PUT, &[put.name], &[fence, &header, &life, &put.bytes])
        };
        let answer = self.run("write", size, write).await?;
        if answer != [Token::Status] {
            return Ok(Written::Refused);
        }
        self.pool.note_size(put.name, size);
        Ok(Written::Stored(Fence::from_bytes(*lock(&written))))
    }

    async fn remove_many(&self, entries: &[&str], hold: Duration) -> Result<(), Error> {
        let life = milliseconds(hold);
        let remove = |_, _| {
            let mut commands = Commands::default();
            for name in entries {
                commands.add_named(b"PSETEX", &[self.tag(), name], &[&life, &header(REMOVED)]);
            }
            commands
        };
        self.run("remove", Size::Small, remove).await.map(drop)
    }

    async fn restamp(&self, stamps: &[Restamp<'_>]) -> Result<(), Error> {
        let names: Vec<&str> = stamps.iter().map(|change| change.name).collect();
        let life = milliseconds(STAMP_LIFE);
        let attempts = AtomicU32::new(0);
        let restamp = |script, history: History| {
            // A script that the server did not know, for which it is sent in full once, has not been carried out.
            let is_repeated = attempts.fetch_add(1, Ordering::Relaxed) > u32::from(script == Script::InFull);
            let stamp = |change: &Restamp<'_>| if is_repeated { Stamp::random() } else { change.stamp };
            let content = |change| history.veil(stamp(change).to_bytes());
            let contents: Vec<[u8; 16]> = stamps.iter().map(content).collect();
            let mut arguments: Vec<&[u8]> = vec![&life];
            for (change, content) in stamps.iter().zip(&contents) {
                let kind: &[u8] = if change.invalidation == Invalidation::Expire { b"E" } else { b"R" };
                arguments.extend([kind, content]);
            }
            self.script_call(script, &RESTAMP, &names, &arguments)
        };
        self.run("restamp", Size::Small, restamp).await.map(drop)
    }

    async fn ping(&self) -> Result<(), Error> {
        let ping = |_, _| {
            let mut commands = Commands::default();
            commands.add(&[b"PING"]);
            commands
        };
        match self.run("ping", Size::Small, ping).await {
            // It can be read, and says so itself to whoever comes to write.
            Err(error) if refusal_of(&error).is_some_and(wire::is_as_good_as_pong) => Ok(()),
            answer => answer.map(drop),
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.pool.names().prefix.as_deref().unwrap_or_default())
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl Text {
    fn new(text: &'static str) -> Self {
        Self { text, digest: ::redis::Script::new(text).get_hash().to_owned() }
    }
}

/// The first word of the refusal that an error is about.
fn refusal_of(error: &Error) -> Option<&str> {
    match error.source()?.downcast_ref()? {
        Fault::Refused(refusal) => Some(refusal.code()),
        _ => None,
    }
}

/// 16 bytes that no other write begins with.
fn header(kind: u8) -> [u8; FENCE] {
    let mut header = fastrand::u128(..).to_be_bytes();
    header[0] = kind;
    header
}

fn slot(content: Option<Bytes>, now: u64, history: History) -> Slot {
    let mut content = content.unwrap_or_default();
    let mut fence = [0; FENCE];
    let begins = content.len().min(FENCE);
    fence[..begins].copy_from_slice(&content[..begins]);
    if content.is_empty() {
        fence = header(ABSENT); // equals nothing
    }
    let remaining = remaining(&content, now).unwrap_or_default();
    let entry = (!remaining.is_zero()).then(|| {
        content.advance(HEADER);
        // A slice of what arrived with it, which is not to be kept.
        let bytes = if content.len() < LARGE { Bytes::copy_from_slice(&content) } else { content };
        Stored { bytes, remaining }
    });
    Slot { entry, fence: Fence::from_bytes(history.veil(fence)) }
}

/// What is left of the life of an entry, if it is one.
fn remaining(content: &[u8], now: u64) -> Option<Duration> {
    let header = content.first_chunk::<HEADER>().filter(|header| header[0] == ENTRY)?;
    let (dies, life) = header[FENCE..].split_at(DIGITS);
    // No more than was asked for, even if the server's clock was set back since.
    let left = unsigned(dies)?.saturating_sub(now).min(unsigned(life)?);
    Some(Duration::from_millis(left))
}

fn stamp(bytes: Option<&[u8]>, history: History) -> Option<Stamp> {
    let bytes = bytes?.try_into().ok()?;
    Some(Stamp::from_bytes(history.veil(bytes)))
}

/// The digits of a number of milliseconds. Rounded down, so that no life grows; but zero, which Redis refuses, becomes
/// the least.
fn milliseconds(duration: Duration) -> Vec<u8> {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, LONGEST_LIFE);
    milliseconds.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(content: Option<Bytes>, now: u64) -> Slot {
        super::slot(content, now, History::default())
    }

    fn entry(dies: &str, life: &str) -> Vec<u8> {
        [&header(ENTRY)[..], dies.as_bytes(), life.as_bytes(), b"bytes"].concat()
    }

    fn left(dies: &str, life: &str, now: u64) -> Option<u64> {
        let slot = slot(Some(entry(dies, life).into()), now);
        slot.entry.map(|entry| u64::try_from(entry.remaining.as_millis()).unwrap())
    }

    #[test]
    fn life_that_is_left_is_by_the_clock_of_the_server_and_no_more_than_was_asked_for() {
        let (dies, life) = ("0000000000005000", "0000000000002000");
        assert_eq!(left(dies, life, 3_000), Some(2_000));
        assert_eq!(left(dies, life, 4_999), Some(1));
        assert_eq!(left(dies, life, 5_000), None);
        assert_eq!(left(dies, life, u64::MAX), None);
        assert_eq!(left(dies, life, 0), Some(2_000), "the clock was set back");
    }

    #[test]
    fn string_that_is_no_entry_is_a_miss_with_a_fence() {
        let digits = "0000000000005000";
        let whole = entry(digits, digits);
        for length in 0..HEADER {
            assert!(slot(Some(whole[..length].to_vec().into()), 0).entry.is_none(), "cut to {length}");
        }
        for garbage in [entry("00000000000x5000", digits), entry(digits, "-000000000005000")] {
            assert!(slot(Some(garbage.into()), 0).entry.is_none());
        }
        let mut removed = whole.clone();
        removed[0] = REMOVED;
        let slot = slot(Some(removed.clone().into()), 0);
        assert!(slot.entry.is_none());
        assert_eq!(slot.fence.to_bytes(), removed[..FENCE]);
    }

    #[test]
    fn slot_keeps_nothing_of_what_arrived_with_it() {
        let mut arrived = bytes::BytesMut::with_capacity(1 << 16);
        arrived.extend_from_slice(&entry("0000000000005000", "0000000000005000"));
        let slot = slot(Some(arrived.split().freeze()), 0);
        assert_eq!(slot.entry.unwrap().bytes, "bytes");
        assert!(arrived.try_reclaim(1 << 16));
    }

    #[test]
    fn fence_of_what_could_not_be_noted_equals_nothing() {
        assert_ne!(slot(None, 0).fence, slot(None, 0).fence);
    }
}
