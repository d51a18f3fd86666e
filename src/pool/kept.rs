//! How many connections are kept open that nobody wants right now: as many as were asked for, or as a full server left.
//!
//! A server that has no more says so to each that is tried. Where callers wait, that is what the size is judged by
//! ([`Ceiling`](super::sizing)). Where nobody does, it is said once: from then on what is there is kept, and one more is tried
//! after a while, then by and by more, as the ceiling returns. Tried without a pause, and counted each time, they would
//! keep the ceiling down for as long as the server is full, far below what it gave.

use std::time::Duration;

use crate::clock::Instant;

/// After so long one more is tried.
const RISES: Duration = Duration::from_secs(30);
/// And where it was to be had, every so often twice as many as before.
const RISES_ON: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Kept {
    wanted: u32,
    /// What a server left of that which had no more.
    left: Option<Left>,
}

#[derive(Clone, Copy, Debug)]
struct Left {
    count: u32,
    /// When that rises next, and by how many.
    rises: Instant,
    by: u32,
}

impl Kept {
    pub(super) fn new(wanted: u32) -> Self {
        Self { wanted, left: None }
    }

    pub(super) fn count(&self) -> u32 {
        self.left.map_or(self.wanted, |left| left.count.min(self.wanted))
    }

    /// The server had no more than `open`, and nobody waits for one. Returns whether that is news.
    pub(super) fn refused(&mut self, open: u32, now: Instant) -> bool {
        let is_news = self.left.is_none();
        if open < self.count() {
            self.left = Some(Left { count: open, rises: now.after(RISES), by: 1 });
        }
        is_news
    }

    /// Some time has passed.
    pub(super) fn rise(&mut self, open: u32, now: Instant) {
        let wanted = self.wanted;
        // What was tried last has to be there first.
        let is_due = |left: &&mut Left| now >= left.rises && open >= left.count;
        if let Some(left) = self.left.as_mut().filter(is_due) {
            left.count = open.saturating_add(left.by);
            left.by = left.by.saturating_mul(2);
            left.rises = now.after(RISES_ON);
        }
        self.left.take_if(|_| open >= wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::default().after(Duration::from_secs(seconds))
    }

    #[test]
    fn after_a_refusal_what_is_there_is_kept_and_more_is_tried_after_a_while() {
        let mut kept = Kept::new(20);
        assert!(kept.refused(7, at(0)));
        assert!(!kept.refused(7, at(0)), "it was known");
        assert_eq!(kept.count(), 7);
        kept.rise(7, at(29));
        assert_eq!(kept.count(), 7);
        kept.rise(7, at(30));
        assert_eq!(kept.count(), 8);
        assert!(!kept.refused(7, at(31)));
        assert_eq!(kept.count(), 7);
        let course = [61, 71, 81, 91, 101].map(|second| {
            let open = kept.count();
            kept.rise(open, at(second));
            kept.count()
        });
        assert_eq!(course, [8, 10, 14, 20, 20]);
        assert!(kept.refused(19, at(120)), "all were there since");
    }

    #[test]
    fn nothing_more_is_tried_before_what_was_tried_last_is_there() {
        let mut kept = Kept::new(20);
        assert!(kept.refused(0, at(0)));
        kept.rise(0, at(30));
        kept.rise(0, at(60));
        assert_eq!(kept.count(), 1);
        kept.rise(1, at(60));
        assert_eq!(kept.count(), 3);
    }
}
