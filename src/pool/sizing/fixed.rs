//! One size, whatever happens.

use std::time::Duration;

use super::{Decision, Reason, Sample, Sizing};

/// One size, whatever happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed(u32);

impl Fixed {
    /// This size, at least 1.
    #[must_use]
    pub fn new(size: u32) -> Self {
        Self(size.max(1))
    }
}

impl Sizing for Fixed {
    fn step(&mut self, _sample: &Sample, _now: Duration) -> Decision {
        Decision::new(self.0, Reason::Steady)
    }

    fn target(&self) -> u32 {
        self.0
    }

    fn proven(&self) -> u32 {
        self.0
    }
}
