//! What is done once in a while: closing what is idle or old, keeping some open, telling of leaks, and sizing.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use bb8::ManageConnection;

use super::{
    sampler::Sampler,
    shared::Shared,
    sizing::Sizing,
    tracked::{Ending, Tracked},
};
use crate::clock::Instant;

/// How often a pool looks at itself.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// How many ticks lie between two looks at every idle connection.
const LOOK: u32 = 10;

/// What is done with what a [`Sizing`] decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follow {
    /// It becomes the target.
    Do,
    /// The log says what would be done.
    Say,
}

/// Ends with the pool, which it does not keep alive.
pub(super) async fn run<M: ManageConnection>(
    pool: Weak<Shared<M>>,
    mut sizing: Option<(Box<dyn Sizing>, Follow)>,
) {
    let Some(mut sampler) = pool.upgrade().map(|shared| Sampler::new(&shared)) else { return };
    for tick in 1_u32.. {
        tokio::time::sleep(TICK).await;
        let Some(shared) = pool.upgrade() else { return };
        let now = shared.clock.now();
        shared.tell_leaks(now);
        if tick % LOOK == 0 {
            shared.look_at_idle(now).await;
        }
        shared.start(shared.supply.missing());
        let sample = sampler.sample(&shared, now);
        shared.show();
        if let Some((sizing, follow)) = &mut sizing {
            let before = sizing.target();
            let decision = sizing.step(&sample, sampler.age(now));
            shared.watch.proven.store(sizing.proven(), Ordering::Relaxed);
            let target = decision.target.clamp(shared.settings.floor, shared.settings.ceiling);
            if target != before {
                tracing::info!(
                    pool = &*shared.name,
                    old = before,
                    new = target,
                    reason = %decision.reason,
                    followed = *follow == Follow::Do,
                    completed = sample.completed,
                    waiting = sample.waiting,
                    full = sample.full_fraction,
                    in_use = sample.in_use_mean,
                    open = sample.open,
                    hold = ?sample.hold_p50,
                    wait = ?sample.wait_p95,
                    connect_failures = sample.connect_failures,
                    "size"
                );
            }
            if *follow == Follow::Do && target != sample.target {
                shared.gate.set_target(target, now);
            }
        }
    }
}

impl<M: ManageConnection> Shared<M> {
    fn tell_leaks(&self, now: Instant) {
        let Some(threshold) = self.settings.leak_threshold else { return };
        for held in self.supply.overdue(threshold, now) {
            self.recorded.leaks.add();
            tracing::warn!(
                pool = &*self.name,
                class = self.classes.get(held.class).map(|name| &**name),
                held = ?held.held,
                place = %held.place,
                "a connection is held for long: is it leaked, or is this work meant to take so long?"
            );
        }
    }

    /// Looks at every idle connection, and closes those that are broken, retired or outlived, and those that nobody
    /// used for long unless they are kept open.
    ///
    /// bb8 lends the one that was returned last, so what is idle for long is at the far end: all are taken, and put
    /// back in the same order. That takes microseconds, and no look at the network.
    pub(super) async fn look_at_idle(self: &Arc<Self>, now: Instant) {
        let count = self.supply.take_all();
        let mut taken = Vec::new();
        for _ in 0..count {
            match self.store.get_owned().await {
                Ok(connection) => taken.push(connection),
                Err(_) => self.after_loss(self.supply.closed()),
            }
        }
        let open = self.supply.count();
        let mut surplus = (open.idle + open.out).saturating_sub(self.settings.keep_open);
        // The one that was used longest ago first.
        while let Some(mut connection) = taken.pop() {
            let tracked: &mut Tracked<M::Connection> = &mut connection;
            let is_idle = self.settings.idle_timeout.is_some_and(|most| now.since(tracked.last_used) >= most);
            let ending = self.tracking.examine(tracked, now);
            let ending = ending.or((is_idle && surplus > 0).then_some(Ending::Idle));
            tracked.ending = ending;
            drop(connection);
            match ending {
                None => self.supply.looked_at(),
                Some(why) => {
                    surplus = surplus.saturating_sub(1);
                    self.recorded.closed(why);
                    self.after_loss(self.supply.closed());
                }
            }
        }
    }

    fn show(&self) {
        let (level, count) = (self.gate.level(), self.supply.count());
        let open = count.idle + count.out;
        self.recorded.show([level.in_use, count.idle, open, level.target, level.waiting + count.waiting]);
    }
}
