//! Loads whose loaders ask for other values: which load the current task runs inside of.

use std::{collections::HashSet, sync::Arc};

use super::{
    key::{AsKey, Key, StoredKey},
    load::{Flying, Purpose},
    load_limit::Waiter,
    tiers::Tiers,
};
use crate::{Error, ErrorKind};

tokio::task_local! {
    /// The loads that the current task runs inside of.
    pub(super) static LOADING: Option<Arc<Nested>>;
}

/// A load, and the one whose loader asked for it.
pub(super) struct Nested {
    cache: usize,
    keys: Inside,
    /// Whether the outer one waits for it.
    is_awaited: bool,
    outer: Option<Arc<Self>>,
}

/// What a load is of.
enum Inside {
    One(StoredKey),
    Many(HashSet<StoredKey>),
}

impl Inside {
    fn contains(&self, key: &Key<'_>) -> bool {
        match self {
            Self::One(one) => one.as_key() == *key,
            Self::Many(many) => many.contains(key as &dyn AsKey),
        }
    }
}

/// One after the other: dropped within each other, the loads that ask for each other in a long row would need as much
/// stack.
impl Drop for Nested {
    fn drop(&mut self) {
        let mut outer = self.outer.take();
        while let Some(mut last) = outer.and_then(Arc::into_inner) {
            outer = last.outer.take();
        }
    }
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    pub(super) fn id(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }

    pub(super) fn nested(self: &Arc<Self>, flying: &Flying<V>) -> Option<Arc<Nested>> {
        let keys = Inside::One(StoredKey::from(&flying.lead.key()));
        let is_awaited = flying.purpose != Purpose::Refresh;
        Some(Arc::new(Nested { cache: self.id(), keys, is_awaited, outer: outer() }))
    }

    /// The same of a load of many.
    pub(super) fn nested_many(self: &Arc<Self>, leads: &[Flying<V>]) -> Option<Arc<Nested>> {
        let keys = Inside::Many(leads.iter().map(|flying| StoredKey::from(&flying.lead.key())).collect());
        let is_awaited = leads.iter().any(|flying| flying.purpose != Purpose::Refresh);
        Some(Arc::new(Nested { cache: self.id(), keys, is_awaited, outer: outer() }))
    }

    /// Who asks, as far as that matters to the limit of loads.
    pub(super) fn waiter(self: &Arc<Self>, purpose: Purpose) -> Waiter {
        let is_ours = |load: Arc<Nested>| load.cache == self.id();
        match purpose {
            Purpose::Refresh => Waiter::Nobody,
            Purpose::Need | Purpose::Force if self.load_limit.is_none() => Waiter::Caller,
            Purpose::Need | Purpose::Force => {
                // The place of a load that does not wait may have been given back.
                let awaiting = |load: &Arc<Nested>| load.outer.clone().filter(|_| load.is_awaited);
                let mut outer = std::iter::successors(outer(), awaiting);
                if outer.any(is_ours) { Waiter::Loader } else { Waiter::Caller }
            }
        }
    }

    /// A loader that waits for its own load would wait for ever.
    pub(super) fn forbid_recursion(self: &Arc<Self>, key: &Key<'_>) -> Result<(), Error> {
        let mut outer = outer();
        while let Some(load) = outer {
            if load.cache == self.id() && load.keys.contains(key) {
                let problem = "the loader of a value asked for that value";
                return Err(Error::new(ErrorKind::Recursion, problem));
            }
            outer = load.outer.clone();
        }
        Ok(())
    }
}

/// The load that the current task runs inside of.
fn outer() -> Option<Arc<Nested>> {
    LOADING.try_with(Clone::clone).ok().flatten()
}
