//! A figure that is judged by itself, not by its ratio to a rival's.

use std::fmt::Write;

use crate::report::judged;

/// One line that begins with `figure`.
#[must_use = "it is printed by `print`"]
pub struct Figure {
    line: String,
    unit: &'static str,
    digits: usize,
    ours: f64,
}

impl Figure {
    /// A number of things.
    pub fn count(name: &str, ours: u64) -> Self {
        Self::new(name, "", 0, ours as f64)
    }

    /// A time, from seconds.
    pub fn milliseconds(name: &str, ours: f64) -> Self {
        Self::new(name, "ms", 1, ours * 1e3)
    }

    /// A number without a unit, about 1.
    pub fn index(name: &str, ours: f64) -> Self {
        Self::new(name, "", 3, ours)
    }

    /// What a rival came to, in what ours was given in.
    pub fn rival(mut self, name: &str, value: f64) -> Self {
        let value = if self.unit == "ms" { value * 1e3 } else { value };
        // Writing to a string does not fail.
        let _ = write!(self.line, " {name}={value:.*}{}", self.digits, self.unit);
        self
    }

    /// Wants ours to be at most this, in the unit of the line.
    pub fn at_most(mut self, bar: f64) -> Self {
        let verdict = judged("<=", format_args!("{bar}{}", self.unit), self.ours <= bar);
        self.line = format!("{} {verdict}", self.line);
        self
    }

    /// Wants ours to be at least this, in the unit of the line.
    pub fn at_least(mut self, bar: f64) -> Self {
        let verdict = judged(">=", format_args!("{bar}{}", self.unit), self.ours >= bar);
        self.line = format!("{} {verdict}", self.line);
        self
    }

    pub fn print(self) {
        println!("{}", self.line);
    }

    fn new(name: &str, unit: &'static str, digits: usize, ours: f64) -> Self {
        Self { line: format!("figure {name} ours={ours:.digits$}{unit}"), unit, digits, ours }
    }
}
