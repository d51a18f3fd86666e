//! Between which sizes an algorithm may choose, and what a connection has to bring.

use crate::Error;

/// The smallest and the largest size that an algorithm may choose, in connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    floor: u32,
    ceiling: u32,
}

impl Bounds {
    /// Sizes from `floor`, at least 1, to `ceiling`, at least `floor`. A task that takes a second connection while it
    /// holds one needs a floor of 2 or more.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) if there is no such size; the message names the field.
    pub fn new(floor: u32, ceiling: u32) -> Result<Self, Error> {
        if floor == 0 {
            return Err(Error::configuration("floor", "a pool of no connections serves nobody"));
        }
        if ceiling < floor {
            return Err(Error::configuration(
                "ceiling",
                format_args!("{ceiling} is below the floor, {floor}"),
            ));
        }
        Ok(Self { floor, ceiling })
    }

    /// The smallest size.
    #[must_use]
    pub fn floor(self) -> u32 {
        self.floor
    }

    /// The largest size.
    #[must_use]
    pub fn ceiling(self) -> u32 {
        self.ceiling
    }

    /// The size within the bounds that is nearest to this one.
    #[must_use]
    pub fn clamp(self, size: u32) -> u32 {
        size.clamp(self.floor, self.ceiling)
    }

    /// The same bounds, up to a ceiling that is no higher than theirs and no lower than their floor.
    pub(super) fn below(self, ceiling: u32) -> Self {
        Self { floor: self.floor, ceiling: self.clamp(ceiling) }
    }
}

/// How much throughput a further connection has to bring: the share of what it would bring if throughput rose with
/// the size. In economics it is an elasticity.
///
/// With a gain of 0.1, a quarter more connections have to raise the throughput by 2.3 %, and twice as many by 7.2 %
/// (2<sup>0.1</sup>). The smaller the gain the nearer to the peak of the throughput, where queries are slow because so
/// many run at once; the larger the gain the fewer of them share the server, and wait in the pool instead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gain(f64);

impl Gain {
    /// 0.1, the default: 97 to 100 % of the peak.
    pub const THROUGHPUT: Self = Self(0.1);
    /// 0.25: 91 to 97 % of the peak, with queries that take four fifths of the time.
    pub const LATENCY: Self = Self(0.25);

    /// A gain above 0 and below 1.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) for any other number.
    pub fn new(gain: f64) -> Result<Self, Error> {
        if gain > 0.0 && gain < 1.0 {
            Ok(Self(gain))
        } else {
            Err(Error::configuration("gain", format_args!("{gain} is not between 0 and 1")))
        }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Default for Gain {
    fn default() -> Self {
        Self::THROUGHPUT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_bounds_name_the_field() {
        assert!(Bounds::new(0, 4).unwrap_err().to_string().starts_with("floor: "));
        assert!(Bounds::new(5, 4).unwrap_err().to_string().starts_with("ceiling: "));
        let bounds = Bounds::new(2, u32::MAX).unwrap();
        assert_eq!((bounds.clamp(0), bounds.clamp(7)), (2, 7));
        assert_eq!(bounds.below(1), Bounds::new(2, 2).unwrap());
    }

    #[test]
    fn impossible_gains_are_refused() {
        for gain in [0.0, 1.0, -0.1, f64::NAN, f64::INFINITY] {
            assert!(Gain::new(gain).unwrap_err().to_string().starts_with("gain: "), "{gain}");
        }
        assert_eq!(Gain::new(0.25).unwrap(), Gain::LATENCY);
    }
}
