//! The highest value of the last minutes, in fixed memory.

use std::time::Duration;

/// How many slices the time is cut into. What is forgotten is forgotten a slice at a time.
const SLICES: u32 = 10;
/// Those, and the one that is being filled.
const KEPT: usize = 11;

/// The highest value noted in the last `span`, and up to a tenth of it longer.
#[derive(Clone, Debug)]
pub(super) struct Peak {
    slice: Duration,
    began: Duration,
    highest: [u32; KEPT],
}

impl Peak {
    /// A peak of the last `span` that starts as if `value` had been there all the time.
    pub(super) fn new(span: Duration, value: u32) -> Self {
        Self { slice: span / SLICES, began: Duration::ZERO, highest: [value; KEPT] }
    }

    pub(super) fn note(&mut self, value: u32, now: Duration) {
        while now.saturating_sub(self.began) >= self.slice {
            if now.saturating_sub(self.began) >= self.slice * (SLICES + 1) {
                *self = Self { began: now, highest: [0; KEPT], ..*self };
                break;
            }
            self.began += self.slice;
            self.highest.rotate_right(1);
            self.highest[0] = 0;
        }
        self.highest[0] = self.highest[0].max(value);
    }

    pub(super) fn highest(&self) -> u32 {
        self.highest.iter().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_is_forgotten_after_the_span_and_not_before() {
        let mut peak = Peak::new(Duration::from_secs(100), 0);
        peak.note(9, Duration::ZERO);
        for second in 1..=100 {
            peak.note(3, Duration::from_secs(second));
            assert_eq!(peak.highest(), 9, "after {second} s");
        }
        for second in 101..=110 {
            peak.note(3, Duration::from_secs(second));
        }
        assert_eq!(peak.highest(), 3);
    }

    #[test]
    fn a_long_silence_and_a_clock_that_stands_or_goes_back_do_no_harm() {
        let mut peak = Peak::new(Duration::from_secs(100), 9);
        peak.note(4, Duration::MAX);
        assert_eq!(peak.highest(), 4);
        peak.note(2, Duration::ZERO);
        assert_eq!(peak.highest(), 4);
    }
}
