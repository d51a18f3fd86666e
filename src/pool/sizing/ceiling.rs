//! How high the ceiling is right now: lowered when the server refuses connections, raised again slowly.
//!
//! The server's limit is shared with other processes, which all see the refusal and all give way: a multiplicative
//! cut and an additive return let them converge to equal shares (Chiu and Jain, 1989). Where as many as were refused are
//! not refused again, most likely somebody has left, as in a rolling update, and it goes on by more and more: as TCP's
//! CUBIC does beyond the window that it lost (RFC 9438).

use std::time::Duration;

use super::{Bounds, Sample};

/// What is left after a refusal: of the connections that were open.
const CUT: f64 = 0.7;
/// Refusals within this time are one: what was in flight when the first came in says nothing new.
const SETTLES: Duration = Duration::from_secs(2);
/// After so long the ceiling rises by one.
const RISES: Duration = Duration::from_secs(30);
/// And above what was open when it was cut every so often by twice as many as before.
const RISES_ON: Duration = Duration::from_secs(10);

/// The ceiling that the server's refusals leave.
#[derive(Clone, Debug, Default)]
pub(super) struct Ceiling {
    cut: Option<Cut>,
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    size: u32,
    at: Duration,
    /// How many were open then.
    open: u32,
    /// When it rises next, and by how many.
    rises: Duration,
    by: u32,
}

impl Ceiling {
    /// Takes in a window. Says whether the ceiling was cut.
    pub(super) fn heed(&mut self, sample: &Sample, bounds: Bounds, now: Duration) -> bool {
        if sample.too_many_connections > 0 {
            let settled = self.cut.is_none_or(|cut| now.saturating_sub(cut.at) >= SETTLES);
            if settled {
                let size = self.cut.map_or(u32::MAX, |cut| cut.size).min(share(sample.open, CUT));
                let rises = now.saturating_add(RISES);
                self.cut = Some(Cut { size: bounds.clamp(size), at: now, open: sample.open, rises, by: 1 });
            }
            return settled;
        }
        if let Some(cut) = &mut self.cut {
            while now >= cut.rises && cut.size < bounds.ceiling() {
                cut.size = cut.size.saturating_add(cut.by);
                let is_above = cut.size > cut.open;
                cut.rises = cut.rises.saturating_add(if is_above { RISES_ON } else { RISES });
                cut.by = if is_above { cut.by.saturating_mul(2) } else { 1 };
            }
            if cut.size >= bounds.ceiling() {
                self.cut = None;
            }
        }
        false
    }

    /// The bounds as they are now. The floor stands whatever is said: a pool of none would not find out.
    pub(super) fn within(&self, sample: &Sample, bounds: Bounds) -> Bounds {
        let cut = self.cut.map_or(u32::MAX, |cut| cut.size);
        bounds.below(sample.ceiling.unwrap_or(u32::MAX).min(cut))
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a u32 is one")]
fn share(of: u32, share: f64) -> u32 {
    (f64::from(of) * share) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn refused(open: u32) -> Sample {
        Sample { too_many_connections: 3, open, ..Sample::default() }
    }

    #[test]
    fn a_refusal_cuts_to_seven_tenths_of_what_is_open_and_the_ceiling_returns_by_one_in_thirty_seconds() {
        let bounds = Bounds::new(2, 24).unwrap();
        let mut ceiling = Ceiling::default();
        let quiet = Sample::default();
        assert!(ceiling.heed(&refused(20), bounds, SECOND));
        assert_eq!(ceiling.within(&quiet, bounds).ceiling(), 14);
        assert!(!ceiling.heed(&quiet, bounds, 30 * SECOND));
        assert_eq!(ceiling.within(&quiet, bounds).ceiling(), 14);
        ceiling.heed(&quiet, bounds, 31 * SECOND);
        assert_eq!(ceiling.within(&quiet, bounds).ceiling(), 15);
        ceiling.heed(&quiet, bounds, 3600 * SECOND);
        assert_eq!(ceiling.within(&quiet, bounds).ceiling(), 24);
    }

    #[test]
    fn ceiling_above_what_was_refused_rises_by_more_and_more() {
        let bounds = Bounds::new(2, 40).unwrap();
        let quiet = Sample::default();
        let mut ceiling = Ceiling::default();
        let at = |second: u32, ceiling: &mut Ceiling| {
            ceiling.heed(&quiet, bounds, second * SECOND);
            ceiling.within(&quiet, bounds).ceiling()
        };
        // A process that comes to a full server, of which others leave.
        ceiling.heed(&refused(0), bounds, Duration::ZERO);
        let course = [0, 29, 30, 40, 50, 60, 70, 80].map(|second| at(second, &mut ceiling));
        assert_eq!(course, [2, 2, 3, 5, 9, 17, 33, 40]);
        ceiling.heed(&refused(5), bounds, 100 * SECOND);
        let course = [100, 130, 160, 190, 200, 210].map(|second| at(second, &mut ceiling));
        assert_eq!(course, [3, 4, 5, 6, 8, 12]);
    }

    #[test]
    fn refusals_that_come_together_are_one_and_later_ones_never_raise_the_ceiling() {
        let bounds = Bounds::new(2, 24).unwrap();
        let mut ceiling = Ceiling::default();
        assert!(ceiling.heed(&refused(20), bounds, SECOND));
        assert!(!ceiling.heed(&refused(14), bounds, 2 * SECOND));
        assert!(ceiling.heed(&refused(24), bounds, 4 * SECOND));
        assert_eq!(ceiling.within(&Sample::default(), bounds).ceiling(), 14);
        assert!(ceiling.heed(&refused(0), bounds, 8 * SECOND));
        assert_eq!(ceiling.within(&Sample::default(), bounds).ceiling(), 2);
    }

    #[test]
    fn the_lowest_of_all_ceilings_counts_but_never_below_the_floor() {
        let bounds = Bounds::new(4, 24).unwrap();
        let ceiling = Ceiling::default();
        let allowed = |ceiling| Sample { ceiling, ..Sample::default() };
        assert_eq!(ceiling.within(&allowed(Some(9)), bounds).ceiling(), 9);
        assert_eq!(ceiling.within(&allowed(Some(1)), bounds).ceiling(), 4);
        assert_eq!(ceiling.within(&allowed(Some(99)), bounds).ceiling(), 24);
    }
}
