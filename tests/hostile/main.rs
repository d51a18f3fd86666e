//! Bytes of hostile writers and strangers, by the ways they come in: the entries that fuzzing begins with, and those it
//! found worth keeping.
//!
//! They lie in `fuzz/corpus`, which is part of the repository and not of the published package. To make those anew that
//! are made here, after a change of the layout say: `MCP_PERF_WRITE_CORPUS=1 cargo test --test hostile`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

#[allow(unreachable_pub, reason = "as beside it")]
mod entries;
#[allow(unreachable_pub, reason = "the targets in `fuzz/` have it too")]
mod reader;
#[path = "../support/mod.rs"]
mod support;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use entries::Named;
use mcp_perf::cache::Codec;
use reader::{Hearer, ReadBy, Reader, Shelf, Value};
use support::log::Log;
use tracing::Level;

/// The folder of a target's corpus, if this is the repository.
fn corpus(target: &str) -> Option<PathBuf> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    fuzz.join("Cargo.toml").exists().then(|| fuzz.join("corpus").join(target))
}

/// All files of a corpus, in the order of their names.
fn files(folder: &Path) -> Vec<Named> {
    let mut files: Vec<Named> = fs::read_dir(folder)
        .unwrap()
        .map(|file| {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            Named { name, bytes: fs::read(path).unwrap() }
        })
        .collect();
    files.sort_by(|one, other| one.name.cmp(&other.name));
    files
}

fn write_if_asked(folder: &Path, entries: &[Named]) {
    if env::var_os("MCP_PERF_WRITE_CORPUS").is_some() {
        for Named { name, bytes } in entries {
            fs::write(folder.join(name), bytes).unwrap();
        }
    }
}

/// Who is to read an entry of this name.
fn meant_for(name: &str) -> ReadBy {
    ReadBy {
        bytes: name.starts_with("bytes-"),
        json: name.starts_with("json-"),
        message_pack: name.starts_with("message-pack-"),
    }
}

#[test]
fn sound_entries_are_read_by_their_codec_and_broken_ones_by_nobody() {
    let reader = Reader::new();
    for Named { name, bytes } in entries::sound().iter().chain(&entries::broken()) {
        assert_eq!(reader.read(bytes), meant_for(name), "{name}");
    }
}

#[test]
fn corpus_of_entries_is_read_as_its_names_say_and_brings_nothing_down() {
    let Some(folder) = corpus("envelope") else { return };
    let made: Vec<Named> = entries::sound().into_iter().chain(entries::broken()).collect();
    write_if_asked(&folder, &made);
    let (reader, files) = (Reader::new(), files(&folder));
    for Named { name, bytes } in &files {
        reader.read_both(bytes);
        // What a fuzzer found is named by its digest, and may be anything.
        if made.iter().any(|made| made.name == *name) {
            assert_eq!(reader.read(bytes), meant_for(name), "{name}: written by another layout?");
        }
    }
    for Named { name, .. } in &made {
        assert!(files.iter().any(|file| file.name == *name), "{name} is not in the corpus");
    }
}

#[test]
fn entry_that_cannot_be_read_is_left_alone_counted_and_said_once() {
    let log = Log::hear();
    let shelf = Shelf::default();
    let unreadable: Vec<Named> = entries::broken()
        .into_iter()
        .filter(|entry| !["negative", "expired"].contains(&&*entry.name))
        .collect();
    reader::runtime().block_on(async {
        let cache = reader::node(&shelf, Codec::<Value>::json()).build().await.unwrap();
        for Named { name, bytes } in &unreadable {
            shelf.answer_with(Some(bytes.clone().into()));
            assert_eq!(cache.get(&reader::key()).await, None, "{name}");
        }
        assert_eq!(cache.stats().remote_unreadable, unreadable.len() as u64);
        assert_eq!(cache.stats().remote_misses, unreadable.len() as u64);
    });
    // It may be of a later release, which reads it.
    assert_eq!((shelf.take_written(), shelf.removals()), (None, 0));
    assert_eq!(log.at_least(Level::INFO).len(), 1, "{:?}", log.at_least(Level::INFO));
}

#[test]
fn messages_of_strangers_make_a_process_forget_and_do_no_worse() {
    let made = entries::messages();
    let hearer = Hearer::new();
    made.iter().for_each(|message| hearer.hear_both(&message.bytes));
    let Some(folder) = corpus("message") else { return };
    write_if_asked(&folder, &made);
    let files = files(&folder);
    assert!(files.len() >= made.len(), "the corpus is not all there");
    files.iter().for_each(|message| hearer.hear_both(&message.bytes));
}

#[test]
fn answers_of_redis_are_read_alike_however_they_are_cut() {
    let made = entries::answers();
    let check = |answer: &Named| {
        let whole = mcp_perf::redis::tokens(&[&answer.bytes]);
        for cut in 0..answer.bytes.len() {
            let (one, two) = answer.bytes.split_at(cut);
            assert_eq!(mcp_perf::redis::tokens(&[one, two]), whole, "{}, cut at {cut}", answer.name);
        }
    };
    made.iter().for_each(check);
    let Some(folder) = corpus("redis_answer") else { return };
    write_if_asked(&folder, &made);
    let files = files(&folder);
    assert!(files.len() >= made.len(), "the corpus is not all there");
    files.iter().for_each(check);
}
