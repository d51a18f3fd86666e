//! Answers of Redis, which are read alike however they are cut on the way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_perf::redis::tokens;

fuzz_target!(|answer: &[u8]| {
    let (one, two) = answer.split_at(answer.len() / 2);
    assert_eq!(tokens(&[one, two]), tokens(&[answer]));
});
