//! Messages of the invalidation bus, heard by a process that has something to lose.
#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../../tests/hostile/reader.rs"]
mod reader;

use libfuzzer_sys::fuzz_target;

thread_local! {
    static HEARER: reader::Hearer = reader::Hearer::new();
}

fuzz_target!(|message: &[u8]| HEARER.with(|hearer| hearer.hear_both(message)));
