//! Paying what the remote tier is owed: the half that asks; [`debts`](super::debts) decides when.
//!
//! # What is owed
//!
//! An invalidation that did not reach the store is *owed*. Until it is paid the store is not asked for what it
//! concerns, so that at least this process is not answered from before its own invalidations. Every read has what is
//! due paid, and waits for that only if it concerns what it asks for: a debt that the store will not take keeps
//! nobody from what he asks for besides it. Where nobody reads, it is seen to [every second](LOOK): other processes wait
//! for it. When what is tried is decided in [`debts`](super::debts).
//!
//! Reading while something else is owed is safe, case by case:
//!
//! - **An entry** is found by its name alone, and nobody asks for that name.
//! - **A tag** is a part of the answer, or else of a second question: what an entry carries is compared with the stamps
//!   of now before it is used, those that the caller did not name are asked for [by name](super::look), and an entry
//!   whose stamps cannot be told is a miss. A large value that memory has is only asked about together with all of its
//!   tags.
//! - **The whole cache** is asked for in every question.
//! - **Any tag**, where loaders choose tags, is asked for in every question of a load, and nobody is kept from that. It
//!   is owed together with the tag itself, which comes after it. Loads of before have been barred in this process by
//!   its version. Those of after have read the source as it is now.
//! - **The ledger**, owed where an announcement failed, is for the others: what they announce is none the less heard
//!   here. It is not looked at while it is owed.
//!
//! What was read before the debt came to be is barred as if the store had been told: running loads were fenced, and
//! tags have another version, again after the debt was noted.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use smallvec::SmallVec;
use tokio::sync::Notify;

use super::{
    chain::{Link, SETTLING},
    debts::{Due, Owed, Standing, What},
    message::Item,
    remote::{Kind, Remote, within},
    store::Restamp,
    tags::Stamp,
};
use crate::{
    Error, ErrorKind,
    sync::{Mutex, lock},
};

/// How often somebody looks whether there is something to be paid, while anything is owed.
const LOOK: Duration = Duration::from_secs(1);

/// Invalidations that the store has not been told.
#[derive(Default)]
pub(super) struct Debts {
    exist: AtomicBool,
    owed: Mutex<Owed>,
    /// Whether there is a task that pays.
    is_paying: AtomicBool,
    /// Whether there is a task that has it paid in time.
    is_watched: AtomicBool,
    /// Told when that has tried something, and when it ends.
    tried: Notify,
    /// How many invalidations the store is being told by those who made them.
    untold: AtomicUsize,
    /// What is not read until they have told it, each as often as it is told; and how many these are.
    barred: Mutex<Vec<Box<str>>>,
    bars: AtomicUsize,
}

impl Debts {
    pub(super) fn len(&self) -> usize {
        lock(&self.owed).len()
    }

    /// How many invalidations the store has not been told, those that it is being told among them.
    pub(super) fn untold(&self) -> usize {
        // In this order: what is told no more may be owed by now.
        let untold = self.untold.load(Ordering::Acquire);
        untold + self.len()
    }

    pub(super) fn bar(&self, name: &str) {
        let mut barred = lock(&self.barred);
        barred.push(name.into());
        self.bars.store(barred.len(), Ordering::Release);
    }

    pub(super) fn unbar(&self, name: &str) {
        let mut barred = lock(&self.barred);
        if let Some(place) = barred.iter().position(|barred| **barred == *name) {
            barred.swap_remove(place);
            self.bars.store(barred.len(), Ordering::Release);
            drop(barred);
            self.tried.notify_waiters();
        }
    }

    fn are_barred(&self, names: &[&str]) -> bool {
        self.bars.load(Ordering::Acquire) > 0
            && lock(&self.barred).iter().any(|barred| names.contains(&&**barred))
    }

    pub(super) fn begin_to_tell(&self) {
        self.untold.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn end_to_tell(&self) {
        self.untold.fetch_sub(1, Ordering::AcqRel);
        self.tried.notify_waiters();
    }
}

/// The one task that pays.
struct Paying<V>(Arc<Remote<V>>);

/// The one task that looks whether there is something to be paid. It does not keep the cache alive.
struct Watching<V: Send + Sync + 'static> {
    remote: Weak<Remote<V>>,
    /// Whether it ended by itself, and not with its runtime.
    is_over: bool,
}

impl<V: Send + Sync + 'static> Remote<V> {
    pub(super) fn owe(&self, name: &str, what: What) {
        let now = self.clock.now();
        self.change(|owed| owed.owe(name, what, &self.epoch, now));
        self.watch_debts();
    }

    /// The same for who holds a lock, and owes it again without.
    pub(super) fn owe_quietly(&self, name: &str, what: What) {
        let now = self.clock.now();
        self.change_quietly(|owed| owed.owe(name, what, &self.epoch, now));
    }

    /// The same for who is being dropped, and where no code of others may run.
    pub(super) fn owe_unseen(&self, name: &str, what: What) {
        self.owe_quietly(name, what);
        self.watch_debts();
    }

    /// What is owed under a name, before the store is told by who invalidates it anew.
    pub(super) fn owed(&self, name: &str) -> Option<Due> {
        if self.debts.exist.load(Ordering::Acquire) { lock(&self.debts.owed).debt(name) } else { None }
    }

    pub(super) fn settle(&self, paid: &[Due]) {
        if !paid.is_empty() {
            self.change(|owed| owed.settle(paid));
        }
    }

    fn change(&self, change: impl FnOnce(&mut Owed)) {
        self.change_quietly(change);
        self.own_events.owes(|| self.debts.len());
    }

    /// Nobody else's code runs.
    fn change_quietly(&self, change: impl FnOnce(&mut Owed)) {
        let mut owed = lock(&self.debts.owed);
        change(&mut owed);
        self.debts.exist.store(owed.len() > 0, Ordering::Release);
    }

    /// Has what is owed paid in time, whether or not somebody reads.
    fn watch_debts(&self) {
        let has_runtime = tokio::runtime::Handle::try_current().is_ok();
        if has_runtime && !self.debts.is_watched.swap(true, Ordering::AcqRel) {
            tokio::spawn(Watching { remote: Weak::clone(&self.me), is_over: false }.run());
        }
    }

    /// Has what is due paid. Nobody waits for it but who asks for a name that is owed, and he for no longer than a
    /// call may take. An error if one of the names is owed still.
    pub(super) async fn pay(&self, entries: &[&str], stamps: &[&str]) -> Result<(), Error> {
        if self.debts.are_barred(entries) {
            let told = async {
                loop {
                    // Before the look, so that nothing is missed that is done after it.
                    let tried = self.debts.tried.notified();
                    if !self.debts.are_barred(entries) {
                        return Ok(());
                    }
                    tried.await;
                }
            };
            within(self.timeout, told).await.inspect_err(|_| self.events.remote_failures.add())?;
        }
        if !self.debts.exist.load(Ordering::Acquire) {
            return Ok(());
        }
        // On the runtime before this one, perhaps.
        self.watch_debts();
        self.begin_to_pay();
        let paid = async {
            let mut has_begun = false;
            loop {
                // Both before the look at what is owed, so that nothing is missed that is done after it.
                let tried = self.debts.tried.notified();
                let is_paying = self.debts.is_paying.load(Ordering::Acquire);
                let names = entries.iter().chain(stamps).copied();
                let standing = lock(&self.debts.owed).standing(names, self.clock.now());
                match standing {
                    Standing::Paid => return Ok(()),
                    Standing::Due if is_paying => tried.await,
                    // It came to be owed when the task that pays was about to end.
                    Standing::Due if !has_begun => {
                        has_begun = true;
                        self.begin_to_pay();
                    }
                    Standing::Due | Standing::PutOff => {
                        let problem =
                            "the remote tier has not been told of an invalidation of what it is asked for";
                        return Err(Error::new(ErrorKind::Unavailable, problem));
                    }
                }
            }
        };
        within(self.timeout, paid).await.inspect_err(|_| self.events.remote_failures.add())
    }

    /// Has everything paid that is owed, and waits for it.
    pub(super) async fn pay_everything(&self) {
        loop {
            let tried = self.debts.tried.notified();
            if self.debts.untold() == 0 {
                return;
            }
            if self.debts.len() == 0 {
                // Who tells it has a time-out.
                tried.await;
                continue;
            }
            // On another runtime than before, perhaps; and for when this is given up.
            self.watch_debts();
            self.change(|owed| owed.hurry(self.clock.now()));
            self.begin_to_pay();
            let _ = tokio::time::timeout(LOOK / 10, tried).await;
            if self.debts.len() > 0 {
                // What was refused is not to be tried more often than this.
                tokio::time::sleep(LOOK / 10).await;
            }
        }
    }

    /// Starts the task that pays, unless it is running or has nothing to do.
    fn begin_to_pay(&self) {
        if !lock(&self.debts.owed).is_due(self.clock.now()) {
            return;
        }
        let Some(remote) = self.me.upgrade() else { return };
        if !self.debts.is_paying.swap(true, Ordering::AcqRel) {
            tokio::spawn(Paying(remote).run());
        }
    }

    /// Tells the store what is due, until nothing is, or for as long as one announcement covers.
    async fn pay_all(&self) {
        let began = self.clock.now();
        let Ok(link) = self.extend_alone().await else {
            return self.change(|owed| owed.rest(self.clock.now()));
        };
        let mut links: SmallVec<[Link; 2]> = link.into_iter().collect();
        let mut has_paid = false;
        while self.clock.now().since(began) <= SETTLING {
            let due = lock(&self.debts.owed).take(self.clock.now());
            if due.is_empty() {
                break;
            }
            let (entries, stamps): (Vec<Due>, Vec<Due>) =
                due.into_iter().partition(|due| due.what == What::Entry);
            for due in [stamps, entries].iter().filter(|due| !due.is_empty()) {
                let told = match self.tell(due).await {
                    Some(Ok(())) if self.clock.now().since(began) > SETTLING => {
                        let again = self.extend_alone().await;
                        links.extend(again.iter().copied().flatten());
                        // If others cannot find out it is as if it had not been told.
                        again.ok().map(|_| Ok(()))
                    }
                    told => told,
                };
                let now = self.clock.now();
                self.change(|owed| match &told {
                    Some(Ok(())) => owed.settle(due),
                    Some(Err(_)) => owed.refused(due, now, fastrand::f64()),
                    None => owed.rest(now),
                });
                has_paid |= matches!(told, Some(Ok(())));
                self.debts.tried.notify_waiters();
            }
        }
        if let Some(coherence) = &self.coherence {
            // What exactly it was others cannot be told: of entries there are only names. What was not paid is
            // announced again when it is.
            let item = has_paid.then_some(&Item::Doubt);
            links.into_iter().for_each(|link| coherence.publish(link, item));
        }
    }

    /// Tells the store debts that are all of entries, or all of stamps; `None` if it is left alone.
    async fn tell(&self, due: &[Due]) -> Option<Result<(), Error>> {
        let round = self.passage()?;
        let names: Vec<&str> = due.iter().map(|due| &*due.name).collect();
        let change = |(due, name): (&Due, _)| {
            // A new one, since an old one may have been in use.
            let stamp = Stamp::random();
            (due.what != What::Entry).then(|| Restamp { name, invalidation: due.what.invalidation(), stamp })
        };
        let stamps: Vec<Restamp<'_>> = due.iter().zip(names.iter().copied()).filter_map(change).collect();
        Some(match stamps.is_empty() {
            true => self.ask(round, Kind::Write, self.store.remove_many(&names, self.hold)).await,
            false => self.ask(round, Kind::Write, self.store.restamp(&stamps)).await,
        })
    }
}

impl<V: Send + Sync + 'static> Paying<V> {
    async fn run(self) {
        self.0.pay_all().await;
    }
}

impl<V: Send + Sync + 'static> Watching<V> {
    async fn run(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(remote) = self.remote.upgrade() else { return };
            let Debts { exist, is_watched, .. } = &remote.debts;
            if exist.load(Ordering::Acquire) {
                remote.begin_to_pay();
                continue;
            }
            self.is_over = true;
            is_watched.swap(false, Ordering::AcqRel);
            // Somebody may have come to owe something who saw that it was watched.
            if !exist.load(Ordering::Acquire) || is_watched.swap(true, Ordering::AcqRel) {
                return;
            }
            self.is_over = false;
        }
    }
}

impl<V: Send + Sync + 'static> Drop for Watching<V> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // Nothing more: where a runtime goes down, what is spawned is dropped at once.
        if let Some(remote) = self.remote.upgrade() {
            remote.debts.is_watched.store(false, Ordering::Release);
        }
    }
}

impl<V> Drop for Paying<V> {
    fn drop(&mut self) {
        let Debts { is_paying, tried, .. } = &self.0.debts;
        is_paying.store(false, Ordering::Release);
        tried.notify_waiters();
    }
}
