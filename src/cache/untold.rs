//! An invalidation that the remote tier is being told, and what becomes of it where that is interrupted.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{debts::What, envelope, flight::Duty, key::Key, remote::Remote, tags::Invalidation};

/// Held while the remote tier is told of an invalidation. Dropped before it [was told](Self::told), because the runtime
/// ended or code of others panicked, it is owed: a store that was not asked answers with what there was before.
pub(super) struct Untold<V: Send + Sync + 'static> {
    remote: Arc<Remote<V>>,
    /// What is to be owed then, in this order.
    what: SmallVec<[(Box<str>, What); 1]>,
    /// What is not read there meanwhile.
    barred: Option<Box<str>>,
}

impl<V: Send + Sync + 'static> Remote<V> {
    /// That an entry is to be removed.
    pub(super) fn untold_removal(self: &Arc<Self>, key: &Key<'_>) -> Untold<V> {
        self.untold([(envelope::entry_name(&self.cache, key).into(), What::Entry)])
    }

    /// That the stamp of a tag, or of the whole cache, is to change.
    pub(super) fn untold_stamp(self: &Arc<Self>, tag: Option<&str>, invalidation: Invalidation) -> Untold<V> {
        let Some(tag) = tag else { return self.untold([(self.epoch.clone(), What::Stamp(invalidation))]) };
        let name = envelope::tag_name(&self.cache, tag).into();
        match &self.any_tag {
            Some(any) => self.untold([(any.clone(), What::AnyTag), (name, What::Tag(invalidation))]),
            None => self.untold([(name, What::Stamp(invalidation))]),
        }
    }

    fn untold(self: &Arc<Self>, what: impl IntoIterator<Item = (Box<str>, What)>) -> Untold<V> {
        self.debts.begin_to_tell();
        Untold { remote: Arc::clone(self), what: what.into_iter().collect(), barred: None }
    }
}

impl<V: Send + Sync + 'static> Untold<V> {
    /// Until it is told, who reads there what is to go waits in this process. For where nothing in memory stands in front of
    /// that, in the lock and before anybody looks.
    pub(super) fn bar(&mut self) {
        if self.barred.is_none() {
            self.barred = self.what.first().map(|(name, _)| name.clone());
            self.barred.iter().for_each(|name| self.remote.debts.bar(name));
        }
    }

    /// The remote tier was told, or owes to be.
    pub(super) fn told(mut self) {
        self.what.clear();
    }
}

/// Left to another load, which is to tell the remote tier. That answers with what there was until then, so who would read it
/// looks for the load first. Who shuts the cache down waits for it.
impl<V: Send + Sync + 'static> Duty for Untold<V> {
    fn neglected(&mut self) {
        for (name, what) in std::mem::take(&mut self.what) {
            self.remote.owe_unseen(&name, what);
        }
    }

    fn done(self: Box<Self>) {
        self.told();
    }
}

impl<V: Send + Sync + 'static> Drop for Untold<V> {
    fn drop(&mut self) {
        self.neglected();
        if let Some(name) = self.barred.take() {
            self.remote.debts.unbar(&name);
        }
        self.remote.debts.end_to_tell();
    }
}
