//! Which reads of a [history](super::history) break a promise, and the story of each.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::history::{Bounds, Breach, Call, Log, Moment, Offer, Operation, Outcome, Versioned, Violation};
use crate::clock::Instant;

/// A story is worth reading, and work to put together: a thousand of them are neither.
const STORIES: usize = 10;

/// What is looked up again and again while judging.
pub(super) struct Judge<'a> {
    log: &'a Log,
    bounds: Bounds,
    /// Invalidations that concern a key, in the order in which they began; those by a tag stand under every key.
    against: BTreeMap<&'a str, Vec<Invalidation<'a>>>,
    offered: BTreeMap<(&'a str, u64), Offered<'a>>,
}

struct Invalidation<'a> {
    call: usize,
    /// Versions below this one.
    outlaws_below: u64,
    /// The highest of these up to here.
    up_to_here: u64,
    /// Only what carries it.
    tag: Option<&'a str>,
    is_expiry: bool,
}

/// All offers of one version.
#[derive(Default)]
struct Offered<'a> {
    first: Option<Moment>,
    last: Option<Instant>,
    /// The tags that all of them carried.
    tags: Option<BTreeSet<&'a str>>,
    /// Insertions, as places in the calls.
    insertions: Vec<usize>,
}

impl<'a> Offered<'a> {
    fn add(&mut self, tags: &'a [String], from: Moment, until: Option<Instant>) {
        let these: BTreeSet<&str> = tags.iter().map(String::as_str).collect();
        self.tags = Some(match self.tags.take() {
            Some(tags) => &tags & &these,
            None => these,
        });
        self.first = Some(self.first.map_or(from, |first| first.min(from)));
        // One that never ended may be carried out at any time.
        let until = until.unwrap_or(Instant::from_nanos(u64::MAX));
        self.last = self.last.max(Some(until));
    }
}

impl<'a> Judge<'a> {
    pub(super) fn new(log: &'a Log, bounds: Bounds) -> Self {
        let mut offered = BTreeMap::<(&str, u64), Offered<'_>>::new();
        for Offer { value, tags, at } in &log.offers {
            offered.entry((&value.key, value.version)).or_default().add(tags, *at, Some(at.at));
        }
        for (place, call) in log.calls.iter().enumerate() {
            if let Operation::Insert(value, tags) = &call.operation {
                let these = offered.entry((&value.key, value.version)).or_default();
                these.add(tags, call.began, call.ended.as_ref().map(|(ended, _)| ended.at));
                these.insertions.push(place);
            }
        }
        let keys: BTreeSet<&str> = offered.keys().map(|(key, _)| *key).collect();
        let mut against = BTreeMap::<&str, Vec<Invalidation<'_>>>::new();
        for (call, Call { operation, began, ended, .. }) in log.calls.iter().enumerate() {
            if ended.is_none() {
                continue;
            }
            let (only, tag, is_expiry) = match operation {
                Operation::Get(_) | Operation::Load(_) => continue,
                Operation::Insert(value, _) => (Some(&*value.key), None, false),
                Operation::Remove(key) => (Some(&**key), None, false),
                Operation::Expire(key) => (Some(&**key), None, true),
                Operation::RemoveByTag(tag) => (None, Some(&**tag), false),
                Operation::ExpireByTag(tag) => (None, Some(&**tag), true),
                Operation::Clear => (None, None, false),
                Operation::ExpireAll => (None, None, true),
            };
            for key in keys.iter().filter(|key| only.is_none_or(|only| only == **key)) {
                let outlaws_below = match operation {
                    Operation::Insert(value, _) => value.version,
                    _ => log.source.get(*key).map_or(0, |writes| writes.partition_point(|at| at < began))
                        as u64,
                };
                let against = against.entry(*key).or_default();
                let up_to_here = against.last().map_or(0, |last| last.up_to_here).max(outlaws_below);
                against.push(Invalidation { call, outlaws_below, up_to_here, tag, is_expiry });
            }
        }
        Self { log, bounds, against, offered }
    }

    pub(super) fn violations(&self) -> Vec<Violation> {
        let reads = self.log.calls.iter().filter_map(|call| Some((call, call.value()?)));
        let breaches = reads.filter_map(|(read, value)| Some((read, value, self.breach(read, value)?)));
        breaches
            .enumerate()
            .map(|(place, (read, value, breach))| {
                let story = if place < STORIES { self.story(read, value, &breach) } else { Vec::new() };
                Violation { read: read.clone(), story, breach }
            })
            .collect()
    }

    fn breach(&self, read: &Call, value: &Versioned) -> Option<Breach> {
        let (Operation::Get(key) | Operation::Load(key)) = &read.operation else { return None };
        if value.key != *key {
            return Some(Breach::OtherKey);
        }
        let ended = read.ended.as_ref()?.0;
        let Some(offered) = self.offered.get(&(key.as_str(), value.version)) else {
            return Some(Breach::NeverOffered);
        };
        if offered.first.is_none_or(|first| first > ended) {
            return Some(Breach::NeverOffered);
        }
        let against = self.against.get(key.as_str()).map_or(&[][..], Vec::as_slice);
        // Those that may concern it are a short stretch of what may be a long list.
        let from = against.partition_point(|earlier| earlier.up_to_here <= value.version);
        let until = against.partition_point(|earlier| self.log.calls[earlier.call].began < read.began);
        let stale = against.get(from..until).into_iter().flatten().find_map(|invalidation| {
            let since = self.unlawful_since(invalidation, read, value, offered)?;
            Some(Breach::Stale { by: invalidation.call, since })
        });
        stale.or_else(|| {
            let Bounds { time_to_live, late, .. } = self.bounds;
            let dies_at = offered.last?.after(time_to_live + self.stale(read) + late);
            (read.began.at >= dies_at).then(|| Breach::Outlived(read.began.at.since(dies_at)))
        })
    }

    /// For how long a read may be given on purpose what has expired.
    fn stale(&self, read: &Call) -> Duration {
        match read.operation {
            Operation::Load(_) => self.bounds.stale,
            _ => Duration::ZERO,
        }
    }

    fn unlawful_since(
        &self,
        invalidation: &Invalidation<'_>,
        read: &Call,
        value: &Versioned,
        offered: &Offered<'_>,
    ) -> Option<Duration> {
        let call = &self.log.calls[invalidation.call];
        let (ended, outcome) = call.ended.as_ref()?;
        if value.version >= invalidation.outlaws_below || *ended >= read.began {
            return None;
        }
        let carries = |tag: &str| offered.tags.as_ref().is_some_and(|tags| tags.contains(tag));
        if invalidation.tag.is_some_and(|tag| !carries(tag)) {
            return None;
        }
        // Until its life is over it may stand in for a load.
        if invalidation.is_expiry && !self.stale(read).is_zero() {
            return None;
        }
        let mut allowed = Duration::ZERO;
        if call.node != read.node {
            if *outcome != Outcome::Done {
                return None;
            }
            allowed += self.bounds.max_staleness;
        }
        let since = read.began.at.since(ended.at);
        // By the same clock at the same time there is an order on one node, but between two there is a bound.
        if since < allowed {
            return None;
        }
        let excuses = |insertion: &usize| {
            let insertion = &self.log.calls[*insertion];
            let ended = read.ended.as_ref().map(|(ended, _)| *ended);
            !insertion.has_ended_before(call.began) && Some(insertion.began) < ended
        };
        if offered.insertions.iter().any(excuses) {
            return None;
        }
        Some(since - allowed)
    }

    /// What happened to the key before the read, as far as it may matter.
    fn story(&self, read: &Call, value: &Versioned, breach: &Breach) -> Vec<String> {
        const LINES: usize = 60;
        let (Operation::Get(key) | Operation::Load(key)) = &read.operation else { return Vec::new() };
        let end = read.ended.as_ref().map_or(read.began, |(ended, _)| *ended);
        let mut lines = Vec::new();
        for (number, at) in self.log.source.get(key).into_iter().flatten().enumerate() {
            lines.push((*at, format!("source: {key} becomes version {}", number + 1)));
        }
        for Offer { value, tags, at } in &self.log.offers {
            if value.key == *key {
                lines.push((*at, format!("loader: {key} version {} with {tags:?}", value.version)));
            }
        }
        for (place, call) in self.log.calls.iter().enumerate() {
            let concerns = match &call.operation {
                Operation::Get(of) | Operation::Load(of) | Operation::Remove(of) | Operation::Expire(of) => {
                    of == key
                }
                Operation::Insert(of, _) => of.key == *key,
                Operation::RemoveByTag(_)
                | Operation::ExpireByTag(_)
                | Operation::Clear
                | Operation::ExpireAll => true,
            };
            if !concerns {
                continue;
            }
            let node = call.node;
            lines.push((call.began, format!("node {node}: #{place} {:?} …", call.operation)));
            if let Some((ended, outcome)) = &call.ended {
                lines.push((*ended, format!("node {node}: #{place} … {outcome:?}")));
            }
        }
        lines.retain(|(at, _)| *at <= end);
        lines.sort_by_key(|(at, _)| *at);
        let by = match breach {
            Breach::Stale { by, .. } => self.log.calls[*by].began.order,
            _ => u64::MAX,
        };
        // From where the version came to be; the latest of it, if that is long ago.
        let written = value
            .version
            .checked_sub(1)
            .and_then(|index| self.log.source.get(key)?.get(usize::try_from(index).ok()?).map(|at| at.order));
        let from = by.min(written.unwrap_or(0));
        lines.retain(|(at, _)| at.order >= from);
        let skipped = lines.len().saturating_sub(LINES);
        let line = |(at, text): &(Moment, String)| format!("{:>12.6} s  {text}", seconds(at.at));
        lines.iter().skip(skipped).map(line).collect()
    }
}

pub(super) fn seconds(at: Instant) -> f64 {
    at.since(Instant::default()).as_secs_f64()
}
