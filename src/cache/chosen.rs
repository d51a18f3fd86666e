//! Tags that a loader chooses.
//!
//! The state of tags that a caller names is noted before the load: what is removed from then on bars it. Which tags a
//! loader chooses is known only after it read its source, and how they stand then proves nothing: a nonce does not tell
//! when it was drawn, so a tag that was removed while the loader ran would pass for one that was not. Therefore, in a
//! cache with [`loader_tags`](super::CacheBuilder::loader_tags), every invalidation of a tag first changes a stamp that
//! all tags have in common, that of *any tag*. A load notes that before it reads its source. Once its loader has chosen,
//! it notes how the tags stand, and after that looks whether any tag is as it was. If not, what was loaded is for those
//! who wait for it and is not stored.
//!
//! # Why this is as good as noting the tags before
//!
//! Claim: a value that is stored with a chosen tag was not read before an invalidation of the tag that its stamp
//! includes.
//!
//! An invalidation changes any tag at `a` and then the tag at `t > a`. Its caller asked for it after the source had
//! changed. The load notes any tag at `l`, then reads its source, notes the tag at `n` and looks at any tag at
//! `c > n`. If `t > n`, what is stored carries a stamp of before the invalidation, and falls with it. Else
//! `a < t <= n < c`. If `l < a`, any tag has changed between `l` and `c`, and nothing is stored. If `a <= l`, the source
//! was read after it had changed. ∎
//!
//! So the tag is noted *before* the second look at any tag, in a trip of its own: a store may answer parts of one
//! question at different times. What could not be told the store is owed, that of any tag first (see
//! [`debts`](super::debts)); what settles the debt of a tag has changed any tag after the debt was noted. In this process
//! the same holds of versions instead of stamps. Who joins a flight is to be given nothing from before an invalidation
//! that came first, so a flight [knows](super::tags::Began) of any tag as well.
//!
//! The price is the reason why this is not so by itself: one name more in each question to the store, another write for
//! each invalidation of a tag, two more trips for a load that chooses, and no value is stored whose load met with the
//! removal of any tag at all.

use std::sync::Arc;

use tokio::time::timeout_at;

use super::{
    captured::CapturedTag,
    load::Flying,
    loaded::{Loaded, What},
    patience::Patience,
    remote::Stamps,
    tags::Stamp,
    tiers::Tiers,
};
use crate::{Error, ErrorKind};

/// A flight, and what its loader returned.
pub(super) type Landing<V> = (Flying<V>, Result<Loaded<V>, Error>);

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    /// Notes the tags that loaders chose, as if they had been named before the loads. Where that is not possible any
    /// more, what was loaded is not to be stored.
    pub(super) async fn choose(&self, landings: &mut [Landing<V>], patience: Patience) {
        let chosen: Vec<Vec<Arc<str>>> =
            landings.iter_mut().map(|landing| self.take_chosen(landing)).collect();
        if chosen.iter().all(Vec::is_empty) {
            return;
        }
        let mut names: Vec<&str> = chosen.iter().flatten().map(|name| &**name).collect();
        names.sort_unstable();
        names.dedup();
        let mut noted = self.capture(&names);
        let heard = self.ask_for_chosen(landings, &names, patience).await;
        let agrees = match &heard {
            Some((stamps, _)) => self.observe(&mut noted, stamps),
            // So that it is not stored there.
            None => {
                noted.tags.iter_mut().for_each(|tag| tag.stamp = None);
                true
            }
        };
        for ((flying, loaded), names) in landings.iter_mut().zip(&chosen) {
            let (Ok(loaded), false) = (loaded, names.is_empty()) else { continue };
            let is_current = match (&flying.captured.any, &heard) {
                (Some(any), Some((_, now))) if flying.fence.is_some() => agrees && any.is_still(*now),
                (Some(any), _) => any.still_holds(),
                (None, _) => false,
            };
            if is_current {
                // In the order of their names, each once.
                let own = |name: &Arc<str>| noted.tags.binary_search_by(|tag| tag.name.cmp(name)).ok();
                let own = names.iter().filter_map(own).map(|index| noted.tags[index].clone());
                flying.captured.tags.extend(own);
            } else {
                self.events.fenced.add();
                loaded.store = false;
            }
        }
    }

    /// The tags that were chosen besides those that were named, sorted.
    fn take_chosen(&self, (flying, loaded): &mut Landing<V>) -> Vec<Arc<str>> {
        let Ok(Loaded { what, tags, store: true, .. }) = loaded else { return Vec::new() };
        let mut names = std::mem::take(tags);
        if let (What::NotModified, Some(_), Some(previous)) = (what, &self.any_tag, &flying.previous) {
            // It is still what it was.
            names.extend(previous.seen().tags.cells().map(|cell| Arc::clone(cell.name())));
        }
        names.retain(|name| flying.captured.tags.iter().all(|tag| tag.name != *name));
        names.sort_unstable();
        names.dedup();
        if !names.is_empty() && self.any_tag.is_none() {
            self.events.load_failures.add();
            let problem = "the loader chose tags, and the cache was built without `loader_tags`";
            *loaded = Err(Error::new(ErrorKind::Load, problem));
            return Vec::new();
        }
        names
    }

    /// How the tags stand in the store, and after that how any tag does; `None` where nobody can tell. Nobody waits for
    /// it for longer than for the load.
    async fn ask_for_chosen(
        &self,
        landings: &[Landing<V>],
        names: &[&str],
        patience: Patience,
    ) -> Option<(Stamps, Option<Stamp>)> {
        let flights = landings.iter().map(|(flying, _)| flying);
        // What did not answer before is asked nothing now.
        let remote = self.remote.as_ref().filter(|_| flights.clone().any(|flying| flying.fence.is_some()))?;
        let answers = async {
            let stamps = remote.stamps(names).await.ok()?;
            Some((stamps, remote.stamps(&[]).await.ok()?.any))
        };
        self.attend(flights, patience, timeout_at(patience.end, answers)).await.ok()?
    }
}

impl CapturedTag {
    /// Whether nothing has happened to it since it was noted, here and where it is `now` in the store.
    fn is_still(&self, now: Option<Stamp>) -> bool {
        now.is_some() && self.stamp == now && self.still_holds()
    }
}
