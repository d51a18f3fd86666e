//! How many values come at once: their flights, the trips to the remote tier that they share, and one load for all that are
//! missing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tracing::Instrument;

use super::{
    chosen::Landing,
    key::Key,
    load::{Boarded, Flying, Purpose, loader_failed},
    loaded::Loaded,
    nesting::LOADING,
    remote::Remote,
    tiers::{Remembered, Tiers},
};
use crate::{Error, error::BoxError};

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    /// Values for many keys, by flights that are running, and one load for all that are missing. And for those `ahead`, which
    /// nobody waits for.
    pub(super) async fn need_many<F, R, I, L, E>(
        self: &Arc<Self>,
        keys: &[Key<'_>],
        ahead: &[Key<'_>],
        tags: &[&str],
        loader: F,
    ) -> Vec<Result<V, Error>>
    where
        F: FnOnce(Vec<Key<'static>>) -> R + Send + 'static,
        R: Future<Output = Result<I, E>> + Send + 'static,
        I: IntoIterator<Item = (Key<'static>, Result<L, E>)> + Send + 'static,
        I::IntoIter: Send,
        L: Into<Loaded<V>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        let captured = self.capture_for_load(tags);
        let (mut waits, mut leads) = (Vec::with_capacity(keys.len()), Vec::new());
        let refresh = |key: &Key<'_>| match self.board(key, Purpose::Refresh, captured.clone()) {
            Boarded::Lead(flying) => {
                // Nobody waits for it, so it comes with the others.
                self.events.refreshes.add();
                Some(*flying)
            }
            Boarded::Found(_) | Boarded::Join(_) => None,
        };
        leads.extend(ahead.iter().filter_map(refresh));
        for key in keys {
            let remembered = self.remembered(key);
            if let Some(Remembered::Due(_) | Remembered::Revalidate(_)) = remembered
                && self.forbid_recursion(key).is_ok()
            {
                leads.extend(refresh(key));
            }
            if let Some(remembered) = remembered {
                waits.push(Err(self.recall(remembered)));
                continue;
            }
            if let Err(error) = self.forbid_recursion(key) {
                waits.push(Err(Err(error)));
                continue;
            }
            // The second of two equal keys joins the flight of the first.
            waits.push(match self.board(key, Purpose::Need, captured.clone()) {
                Boarded::Found(remembered) => Err(self.recall(remembered)),
                Boarded::Join(flight) => Ok(flight),
                Boarded::Lead(flying) => {
                    let flight = flying.lead.aboard();
                    leads.push(*flying);
                    Ok(flight)
                }
            });
        }
        if !leads.is_empty() {
            let inside = self.nested_many(&leads);
            let load = Arc::clone(self).fly_many(leads, loader);
            tokio::spawn(LOADING.scope(inside, load).in_current_span());
        }
        let mut values = Vec::with_capacity(keys.len());
        for wait in waits {
            values.push(match wait {
                Ok(flight) => self.await_outcome(&flight).await,
                Err(found) => found,
            });
        }
        values
    }

    async fn fly_many<F, R, I, L, E>(self: Arc<Self>, leads: Vec<Flying<V>>, loader: F)
    where
        F: FnOnce(Vec<Key<'static>>) -> R + Send + 'static,
        R: Future<Output = Result<I, E>> + Send + 'static,
        I: IntoIterator<Item = (Key<'static>, Result<L, E>)> + Send + 'static,
        I::IntoIter: Send,
        L: Into<Loaded<V>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        let missing = self.look_many(leads).await;
        if missing.is_empty() {
            return;
        }
        for flying in &missing {
            self.release_at_once(flying);
        }
        let keys = missing.iter().map(|flying| flying.lead.key().into_owned()).collect();
        let load = async {
            let loaded = loader(keys).await.map_err(loader_failed)?;
            let loaded = loaded.into_iter().map(|(key, of_key)| (key, of_key.map(Into::into)));
            Ok(loaded.collect::<HashMap<Key<'static>, Result<Loaded<V>, E>>>())
        };
        let patience = self.patience();
        let (loaded, cost) = match self.place(&missing, patience).await {
            Ok(place) => self.run(load, &missing, patience, place).await,
            Err(error) => (Err(error), Duration::ZERO),
        };
        let mut landings: Vec<Landing<V>> = match loaded {
            Ok(mut loaded) => {
                let landing = |flying: Flying<V>| {
                    let of_key = loaded.remove(&flying.lead.key().into_owned());
                    let of_key = match of_key {
                        Some(Ok(loaded)) => Ok(loaded),
                        Some(Err(error)) => {
                            self.events.load_failures.add();
                            Err(loader_failed(error))
                        }
                        None => Ok(Loaded::not_found()),
                    };
                    (flying, of_key)
                };
                missing.into_iter().map(landing).collect()
            }
            Err(error) => missing.into_iter().map(|flying| (flying, Err(error.clone()))).collect(),
        };
        let loaded_at = self.clock.now();
        self.choose(&mut landings, patience).await;
        let settle = |(flying, loaded)| self.settle(flying, loaded, loaded_at, cost);
        let shares: Vec<_> = landings.into_iter().filter_map(settle).collect();
        // At once, so that a store that gathers calls makes few trips of them.
        let mut writes = tokio::task::JoinSet::new();
        for shared in shares {
            let tiers = Arc::clone(&self);
            writes.spawn(async move { shared.with(&tiers).await });
        }
        writes.join_all().await;
    }

    /// Asks the remote tier for many, at once; returns the flights that go on.
    async fn look_many(&self, leads: Vec<Flying<V>>) -> Vec<Flying<V>> {
        let mut missing = Vec::new();
        let Some(remote) = &self.remote else {
            missing.extend(leads.into_iter().filter_map(|flying| self.spare(flying)));
            return missing;
        };
        let (known, unknown) = leads.into_iter().partition(|flying: &Flying<V>| flying.known.is_some());
        let (again, read) = tokio::join!(self.peek_at_many(remote, known), self.read_many(remote, unknown));
        missing.extend(again.missing);
        missing.extend(read);
        missing.extend(self.read_many(remote, again.changed).await);
        missing
    }

    async fn read_many(&self, remote: &Remote<V>, leads: Vec<Flying<V>>) -> Vec<Flying<V>> {
        let Some(first) = leads.first() else { return Vec::new() };
        let asked_at = self.clock.now();
        let keys: Vec<Key<'_>> = leads.iter().map(|flying| flying.lead.key()).collect();
        let names = first.captured.names();
        let read = self.await_remote(remote, &leads, remote.read_many(&keys, &names)).await;
        drop((keys, names));
        let Ok(reads) = read else {
            return leads.into_iter().filter_map(|flying| self.unheard(flying)).collect();
        };
        let (mut missing, mut tagged, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (mut flying, read) in leads.into_iter().zip(&reads) {
            let Flying { lead, captured, .. } = &mut flying;
            let found = self.found(remote, &lead.key(), captured, read);
            let known = names.len();
            names.extend(found.iter().flat_map(|found| found.unnamed(captured)));
            if names.len() > known {
                tagged.push((flying, read.slot.fence, found));
                continue;
            }
            let found = found.map(|found| (found, Vec::new()));
            let looked = self.judge(remote, &lead.key(), captured, read.slot.fence, found, asked_at).await;
            missing.extend(self.looked(flying, looked));
        }
        if tagged.is_empty() {
            return missing;
        }
        // One trip for the tags of all of them that the caller does not name.
        names.sort_unstable();
        names.dedup();
        let flights = tagged.iter().map(|(flying, ..)| flying);
        let stamped = self.await_remote(remote, flights, self.stamped(remote, &names)).await;
        for (flying, fence, found) in tagged {
            let (key, captured) = (flying.lead.key(), &flying.captured);
            let own = |name: &str| stamped.as_ref()?.get(names.binary_search(&name).ok()?).cloned();
            let found = found.and_then(|found| {
                let others = found.unnamed(captured).map(own).collect::<Option<_>>()?;
                Some((found, others))
            });
            let looked = self.judge(remote, &key, captured, fence, found, asked_at).await;
            drop(key);
            missing.extend(self.looked(flying, looked));
        }
        missing
    }
}
