//! Which key is asked for next: drawn before anything is measured, the same for both sides.

use std::sync::Arc;

/// At least so many, or as many as there are keys.
const DRAWS: usize = 1 << 16;

/// Indices of keys, without end.
#[derive(Clone)]
pub struct Draws {
    indices: Arc<[u32]>,
    next: usize,
}

impl Draws {
    /// Every key as often as any other.
    pub fn uniform(keys: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        Self::from(keys, || random.usize(..keys))
    }

    /// The key of rank `r` in proportion to `r^-0.99`, the skew of YCSB. Which key has which rank is random.
    pub fn zipf(keys: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(2);
        let mut by_rank: Vec<usize> = (0..keys).collect();
        random.shuffle(&mut by_rank);
        let mut sum = 0.0;
        let up_to: Vec<f64> = (1..=keys)
            .map(|rank| {
                sum += (rank as f64).powf(-0.99);
                sum
            })
            .collect();
        Self::from(keys, || {
            let point = random.f64() * sum;
            by_rank[up_to.partition_point(|up_to| *up_to < point).min(keys - 1)]
        })
    }

    /// The same draws, begun somewhere else.
    pub fn anywhere(&self) -> Self {
        Self { next: fastrand::usize(..self.indices.len()), ..self.clone() }
    }

    fn from(keys: usize, mut draw: impl FnMut() -> usize) -> Self {
        // A power of two, so that going round is a mask.
        let count = keys.next_power_of_two().max(DRAWS);
        let indices = (0..count).map(|_| u32::try_from(draw()).unwrap_or(u32::MAX)).collect();
        Self { indices, next: 0 }
    }

    #[inline]
    pub fn draw(&mut self) -> usize {
        self.next = (self.next + 1) & (self.indices.len() - 1);
        self.indices[self.next] as usize
    }
}
