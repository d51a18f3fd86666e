//! What a reader of the figures has to know of the machine.

use std::fs;

/// Describes the machine on stderr.
pub fn describe() {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let processor =
        line_of("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    eprintln!("machine: {processor}, {cores} cores, {}", std::env::consts::OS);
    eprintln!("load before the first round: {}", load.trim());
}

fn line_of(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
