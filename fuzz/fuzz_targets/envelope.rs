//! Entries of the remote tier, read as every codec reads them.
#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../../tests/hostile/reader.rs"]
mod reader;

use libfuzzer_sys::fuzz_target;

thread_local! {
    static READER: reader::Reader = reader::Reader::new();
}

fuzz_target!(|entry: &[u8]| READER.with(|reader| reader.read_both(entry)));
