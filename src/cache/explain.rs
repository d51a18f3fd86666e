//! Why a look-up comes to what it comes to.

use std::{fmt, time::Duration};

use super::{
    envelope::Envelope,
    freshness::Standing,
    key::Key,
    local::{Entry, Local},
    remote::Remote,
    tiers::Tiers,
};
use crate::{Error, ErrorKind, clock::Instant};

/// What [`Cache::explain`](super::Cache::explain) found. Printed, it is one sentence per tier; it holds neither the key
/// nor the value.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explanation {
    /// The entry in this process's memory.
    pub local: LocalState,
    /// The entry in the remote tier.
    pub remote: RemoteState,
    /// Whether a load of the key is running in this process.
    pub is_loading: bool,
}

/// An entry in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LocalState {
    /// None: never stored, evicted, removed, or nobody asked for it for too long.
    Absent,
    /// To be served, for so long.
    Fresh(Duration),
    /// Past its time to live; kept for so long.
    Stale(Duration),
    /// Made to expire before its time; kept to stand in for a failed load for so long.
    Expired(Duration),
    /// Removed since it was stored: all values were, or those of the tag that is named.
    Removed {
        /// The tag, if it is still known which.
        tag: Option<String>,
    },
    /// Another process may have removed it since the remote tier was last asked.
    Unconfirmed,
    /// Over.
    Dead,
    /// The answer that there is no such value, to be given for so long.
    NotFound(Duration),
    /// The error of a load that failed a moment ago.
    Failure(ErrorKind),
}

/// An entry in the remote tier.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RemoteState {
    /// The cache has no remote tier.
    None,
    /// It did not answer, or was not asked because it is away or was not told of an invalidation of this key yet.
    Failed(ErrorKind),
    /// It has no entry.
    Absent,
    /// It has bytes that are no entry of this key, or of another release.
    Foreign,
    /// It has an entry, fresh for so long.
    Fresh(Duration),
    /// It has an entry past its time to live, kept for so long.
    Stale(Duration),
    /// It has the answer that there is no such value, for so long.
    NotFound(Duration),
    /// It has no value, and somebody is loading one: the lease lasts for so long, unless it is prolonged.
    Leased(Duration),
    /// It has an entry that was removed since by a tag or by a clear, or made to expire.
    Invalidated,
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    pub(super) async fn explain(&self, key: &Key<'_>) -> Explanation {
        let local = match self.local.get(key) {
            Some(entry) => self.explain_local(&entry, self.clock.now()),
            None => LocalState::Absent,
        };
        let remote = match &self.remote {
            Some(remote) => self
                .explain_remote(remote, key)
                .await
                .unwrap_or_else(|error| RemoteState::Failed(error.kind())),
            None => RemoteState::None,
        };
        Explanation { local, remote, is_loading: self.flights.is_running(key) }
    }

    fn explain_local(&self, entry: &Entry<V>, now: Instant) -> LocalState {
        let kept = entry.times().dies_at.since(now);
        if self.settings.time_to_idle.is_some_and(|idle| entry.is_idle(idle, now)) {
            return LocalState::Absent;
        }
        if !entry.is_left(&self.epoch) {
            let tag = entry.removed_tag().map(|cell| cell.name().to_string());
            return LocalState::Removed { tag };
        }
        if kept.is_zero() {
            return LocalState::Dead;
        }
        match &entry.content {
            Err(error) if error.kind() == ErrorKind::NotFound => match self.is_confirmed(entry, now) {
                true => LocalState::NotFound(kept),
                false => LocalState::Unconfirmed,
            },
            Err(error) => LocalState::Failure(error.kind()),
            Ok(_) if !self.is_confirmed(entry, now) => LocalState::Unconfirmed,
            Ok(_) if !entry.still_holds(&self.epoch) || entry.times().was_expired => {
                LocalState::Expired(kept)
            }
            Ok(_) => match entry.times().standing(now, || 1.0) {
                Standing::Fresh | Standing::Due => LocalState::Fresh(entry.times().fresh_until.since(now)),
                _ => LocalState::Stale(kept),
            },
        }
    }

    async fn explain_remote(&self, remote: &Remote<V>, key: &Key<'_>) -> Result<RemoteState, Error> {
        let read = remote.read(key, &[]).await?;
        let Some(stored) = read.slot.entry else { return Ok(RemoteState::Absent) };
        let Some(envelope) = Envelope::open(&stored.bytes, key) else { return Ok(RemoteState::Foreign) };
        let names: Vec<&str> = envelope.tags.iter().map(|(tag, _)| *tag).collect();
        let carried: Vec<_> = envelope.tags.iter().map(|(_, stamp)| *stamp).collect();
        let stamps = if names.is_empty() { read.stamps } else { remote.stamps(&names).await? };
        if stamps.epoch != envelope.epoch || stamps.tags != carried {
            return Ok(RemoteState::Invalidated);
        }
        let left = envelope.value_left(stored.remaining);
        let age = envelope.life.saturating_sub(left);
        Ok(match envelope.fresh.saturating_sub(age) {
            Duration::ZERO if left.is_zero() && envelope.lease.is_some() => {
                RemoteState::Leased(envelope.lease_left(stored.remaining))
            }
            Duration::ZERO => RemoteState::Stale(left),
            fresh if envelope.negative => RemoteState::NotFound(fresh),
            fresh => RemoteState::Fresh(fresh),
        })
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loading = if self.is_loading { "a load is running" } else { "no load running" };
        write!(f, "in memory: {}; {}; {loading}", self.local, self.remote)
    }
}

impl fmt::Display for LocalState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing"),
            Self::Fresh(left) => write!(f, "fresh for {left:.1?}"),
            Self::Stale(kept) => write!(f, "stale, kept for {kept:.1?}"),
            Self::Expired(kept) => write!(f, "made to expire, kept for {kept:.1?}"),
            Self::Removed { tag: Some(tag) } => write!(f, "removed since (by its tag `{tag}`)"),
            Self::Removed { tag: None } => f.write_str("removed since"),
            Self::Unconfirmed => f.write_str("to be confirmed by the remote tier"),
            Self::Dead => f.write_str("over its time"),
            Self::NotFound(left) => write!(f, "known not to exist for {left:.1?}"),
            Self::Failure(kind) => write!(f, "a load failed a moment ago ({kind:?})"),
        }
    }
}

impl fmt::Display for RemoteState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no remote tier"),
            Self::Failed(kind) => write!(f, "the remote tier does not answer ({kind:?})"),
            Self::Absent => f.write_str("nothing in the remote tier"),
            Self::Foreign => f.write_str("bytes of somebody else in the remote tier"),
            Self::Fresh(left) => write!(f, "in the remote tier fresh for {left:.1?}"),
            Self::Stale(kept) => write!(f, "in the remote tier stale, kept for {kept:.1?}"),
            Self::NotFound(left) => write!(f, "in the remote tier known not to exist for {left:.1?}"),
            Self::Leased(left) => write!(f, "being loaded by a process whose lease lasts for {left:.1?}"),
            Self::Invalidated => f.write_str("invalidated in the remote tier"),
        }
    }
}
