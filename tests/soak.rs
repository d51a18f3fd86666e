//! Memory stays within its bound, whatever is asked for: a million distinct keys of mixed sizes for a minute.
//!
//! ```text
//! cargo test --release --test soak -- --ignored --nocapture
//! ```
//!
//! `MCP_PERF_SOAK_SECONDS` makes it longer. The short version of the normal run holds the entries to the
//! capacity; what is resident depends on the allocator, and is judged by the long one alone, on Linux.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

use std::{convert::Infallible, env, fs, time::Duration};

use bytes::Bytes;
use mcp_perf::{
    cache::{Cache, Key, Loaded},
    clock::{Clock, Instant},
};

const KEYS: u64 = 1_000_000;
/// Of every second request.
const POPULAR: u64 = 10_000;
const TAGS: u64 = 1_000;
const MEBIBYTE: u64 = 1 << 20;
/// What the entries in memory may take together.
const CAPACITY: u64 = 128 * MEBIBYTE;

/// The cache under test.
fn cache() -> Cache<Bytes> {
    // Short, so that entries die as well as make room.
    let builder = Cache::builder("soak").time_to_live(Duration::from_secs(20));
    builder.capacity_bytes(CAPACITY, |value: &Bytes| value.len() as u64).build().unwrap()
}

/// From 100 bytes to 64 KiB, most of them small: 2.5 kB in the mean.
fn size(key: u64) -> usize {
    let mut random = fastrand::Rng::with_seed(key);
    match random.u8(..100) {
        0..80 => random.usize(100..1_000),
        80..98 => random.usize(1_000..8_000),
        _ => random.usize(8_000..65_536),
    }
}

/// Resident memory in bytes, where the system tells it.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1_024)
}

/// What was seen while it ran.
#[derive(Debug)]
struct Seen {
    requests: u64,
    distinct: u64,
    most_weight: u64,
    most_resident: Option<u64>,
}

async fn soak(time: Duration, least_distinct: u64) -> Seen {
    let cache = cache();
    let clock = Clock::system();
    let mut seen = Seen { requests: 0, distinct: 0, most_weight: 0, most_resident: None };
    let mut random = fastrand::Rng::with_seed(1);
    while clock.now().since(Instant::default()) < time || seen.distinct < least_distinct {
        for _ in 0..10_000 {
            // Every second one goes on through all keys, again and again.
            let key = if random.bool() {
                random.u64(..POPULAR)
            } else {
                seen.distinct += 1;
                seen.distinct % KEYS
            };
            ask(&cache, key).await;
            seen.requests += 1;
        }
        cache.remove(&Key::public(&random.u64(..POPULAR).to_be_bytes())).await.unwrap();
        cache.remove_by_tag(&format!("tag {}", random.u64(..TAGS))).await.unwrap();
        seen.most_weight = seen.most_weight.max(cache.stats().weight);
        seen.most_resident = seen.most_resident.max(resident());
    }
    seen
}

async fn ask(cache: &Cache<Bytes>, key: u64) {
    let load = move || async move {
        let value = Bytes::from(vec![key.to_be_bytes()[7]; size(key)]);
        Ok::<_, Infallible>(Loaded::new(value))
    };
    let tag = format!("tag {}", key % TAGS);
    let value = cache.get_or_load_tagged(&Key::public(&key.to_be_bytes()), &[&tag], load).await.unwrap();
    assert_eq!((value[0], value.len()), (key.to_be_bytes()[7], size(key)));
}

#[tokio::test]
async fn entries_stay_within_the_capacity_in_bytes() {
    let seen = soak(Duration::ZERO, 100_000).await;
    assert!(seen.most_weight <= CAPACITY && seen.most_weight > CAPACITY / 2, "{seen:?} of {CAPACITY}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: see the head of this file"]
async fn resident_memory_stays_within_its_bound_under_a_million_keys_of_mixed_sizes() {
    let seconds = env::var("MCP_PERF_SOAK_SECONDS").map_or(60, |seconds| seconds.parse().unwrap());
    let seen = soak(Duration::from_secs(seconds), KEYS).await;
    let bound = CAPACITY + CAPACITY / 4 + 64 * MEBIBYTE;
    let resident = seen.most_resident.expect("a system that tells what is resident");
    println!("{seen:?}: {} of {} MiB resident at most", resident / MEBIBYTE, bound / MEBIBYTE);
    assert!(seen.distinct >= KEYS && resident <= bound, "{seen:?}, and {bound} bytes are the bound");
}
