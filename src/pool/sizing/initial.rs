//! Where to start: the rule of thumb.

use std::{fs, path::Path};

use super::Bounds;

/// What a connection costs a database's machine, in bytes: a process, its caches and some working memory.
const PER_CONNECTION: u64 = 50 * 1000 * 1000;

/// A machine, as far as the rule of thumb looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Machine {
    /// Processors that may be used at once. Zero counts as one.
    pub cores: usize,
    /// Memory that is free for use, in bytes, if known.
    pub memory: Option<u64>,
}

impl Machine {
    /// The machine that this runs on: its processors as far as this process may use them, and, on Linux, its
    /// free memory, or the limit of the process's control group where that is less. Reads a few small files, so it may block for
    /// microseconds.
    #[must_use]
    pub fn read() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = [free_of_machine(), limit_of_control_group()].into_iter().flatten().min();
        Self { cores, memory }
    }
}

/// Where to start while nothing is known: two connections a core, as far as memory for them (50 MB each) is free,
/// within the bounds.
///
/// The machine should be the server's. Where that is not known the own one is a guess no worse than any constant; the
/// pool learns the rest.
///
/// ```
/// use mcp_perf::pool::sizing::{Bounds, Machine, initial_size};
///
/// let mut machine = Machine::default();
/// machine.cores = 8;
/// assert_eq!(initial_size(&machine, Bounds::new(2, 64)?), 16);
/// machine.memory = Some(500_000_000);
/// assert_eq!(initial_size(&machine, Bounds::new(2, 64)?), 10);
/// # Ok::<(), mcp_perf::Error>(())
/// ```
#[must_use]
pub fn initial_size(machine: &Machine, bounds: Bounds) -> u32 {
    let by_cores = u32::try_from(machine.cores.max(1)).unwrap_or(u32::MAX).saturating_mul(2);
    let by_memory = machine.memory.map_or(u64::MAX, |memory| memory / PER_CONNECTION);
    bounds.clamp(by_cores.min(u32::try_from(by_memory).unwrap_or(u32::MAX)))
}

fn free_of_machine() -> Option<u64> {
    available(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// A container's limit: version 2 of the kernel's interface, or version 1. What is in use of it does not count, since
/// most of that is a file cache, which gives way.
fn limit_of_control_group() -> Option<u64> {
    ["memory.max", "memory/memory.limit_in_bytes"]
        .into_iter()
        .find_map(|path| fs::read_to_string(Path::new("/sys/fs/cgroup").join(path)).ok()?.trim().parse().ok())
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_memory_bounds_nothing_and_no_cores_are_one() {
        let bounds = Bounds::new(1, 1000).unwrap();
        assert_eq!(initial_size(&Machine::default(), bounds), 2);
        assert_eq!(initial_size(&Machine { cores: 64, memory: None }, bounds), 128);
        assert_eq!(initial_size(&Machine { cores: usize::MAX, memory: Some(u64::MAX) }, bounds), 1000);
        assert_eq!(initial_size(&Machine { cores: 4, memory: Some(0) }, bounds), 1);
    }

    #[test]
    fn free_memory_is_read_from_what_linux_says() {
        let meminfo = "MemTotal:  8046500 kB\nMemFree:  120340 kB\nMemAvailable:    4023250 kB\n";
        assert_eq!(available(meminfo), Some(4_023_250 * 1024));
        for broken in ["", "MemAvailable:", "MemAvailable: lots kB", "MemAvailable: 99999999999999999999 kB"]
        {
            assert_eq!(available(broken), None, "{broken}");
        }
    }

    #[test]
    fn this_machine_has_a_processor() {
        assert!(Machine::read().cores >= 1);
    }
}
