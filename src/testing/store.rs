//! What every [`Store`] has to keep, as functions that panic where it does not.
//!
//! An implementation's test calls [`keeps_its_contract`] with a store nobody else writes to:
//!
//! ```
//! use mcp_perf::{clock::Clock, testing::{MemoryStore, store}};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let clock = Clock::manual();
//! let store = MemoryStore::new(clock.clone());
//! store::keeps_its_contract(&store, async |time| clock.advance(time)).await;
//! # }
//! ```

#![expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::panic,
    reason = "these are tests: they say so by panicking"
)]
#![expect(clippy::future_not_send, reason = "a test awaits them where it is")]

use std::time::Duration;

use bytes::Bytes;

use crate::cache::{Fence, Invalidation, Put, Restamp, Slot, Stamp, Store, Written};

const MINUTE: Duration = Duration::from_secs(60);
/// Short, but longer than a slow machine takes for a few calls.
const SHORT: Duration = Duration::from_millis(1_500);

/// Runs every test of this module. `pass` lets time pass for the store: by sleeping, or by moving its clock.
pub async fn keeps_its_contract<S: Store>(store: &S, pass: impl AsyncFn(Duration)) {
    store.ping().await.expect("ping");
    what_was_put_is_read(store).await;
    peek_tells_what_a_read_tells_but_for_the_bytes(store, &pass).await;
    answers_are_in_the_order_of_the_names(store).await;
    put_is_refused_after_any_write_since_the_fence(store).await;
    put_is_refused_after_a_removal_since_the_fence(store).await;
    put_without_a_fence_overwrites_everything(store).await;
    stamps_stay_until_they_are_changed(store).await;
    stamp_that_expires_keeps_its_first_half(store).await;
    fence_of_a_write_is_what_is_read_after_it(store).await;
    callers_who_make_a_stamp_at_once_get_the_same(store).await;
    one_of_many_puts_with_one_fence_is_stored(store).await;
    remaining_life_never_grows(store, &pass).await;
    removal_is_remembered_while_it_is_held(store, &pass).await;
    removal_is_remembered_though_what_was_written_over_it_died(store, &pass).await;
    lease_is_destroyed_by_a_removal_and_by_its_end(store, &pass).await;
    fence_of_what_is_no_longer_there_holds_from_the_first_moment(store, &pass).await;
}

async fn read<S: Store>(store: &S, name: &str) -> Slot {
    let found = store.get_many(&[name], &[]).await.expect("get_many");
    assert_eq!(found.entries.len(), 1, "one slot for one name");
    found.entries.into_iter().next().expect("one slot")
}

async fn put<S: Store>(store: &S, name: &str, bytes: &'static [u8], fence: Option<Fence>) -> Written {
    let put = Put { fence, ..Put::new(name, Bytes::from_static(bytes), MINUTE) };
    store.put_if(put).await.expect("put_if")
}

fn bytes(slot: &Slot) -> Option<&[u8]> {
    slot.entry.as_ref().map(|entry| &*entry.bytes)
}

/// Fences, stamps, and what is there and what is not.
pub async fn peek_tells_what_a_read_tells_but_for_the_bytes<S: Store>(
    store: &S,
    pass: &impl AsyncFn(Duration),
) {
    let [small, large, absent] = ["contract:peek:small", "contract:peek:large", "contract:peek:absent"];
    let names = [small, absent, large, small];
    let stamps = ["contract:peek:one", "contract:peek:two"];
    for (name, size) in [(small, 3), (large, 100_000)] {
        let put = Put::new(name, vec![7; size].into(), MINUTE);
        assert!(is_stored(store.put_if(put).await.expect("put_if")));
    }
    let peeked = store.peek_many(&names, &stamps).await.expect("peek_many");
    let read = store.get_many(&names, &stamps).await.expect("get_many");
    assert_eq!(peeked.stamps, read.stamps, "made by who peeks, too");
    assert_eq!(peeked.entries.len(), names.len(), "one slot for every name");
    for (name, (peeked, read)) in names.iter().zip(peeked.entries.iter().zip(&read.entries)) {
        let remaining = peeked.entry.as_ref().map(|entry| entry.remaining);
        assert_eq!(remaining.is_some(), *name != absent);
        if let Some(remaining) = remaining {
            assert_eq!(peeked.fence, read.fence, "of {name}");
            assert!(remaining <= MINUTE && remaining > MINUTE / 2, "{remaining:?}");
        }
    }
    let peek = async || {
        let found = store.peek_many(&[small, large], &[]).await.expect("peek_many");
        let [small, large] = <[Slot; 2]>::try_from(found.entries).expect("two slots");
        (small, large)
    };
    // The same bytes, written again, are another entry.
    assert!(is_stored(put(store, small, b"\x07\x07\x07", None).await));
    store.remove_many(&[large], MINUTE).await.expect("remove_many");
    let (again, removed) = peek().await;
    assert!(again.entry.is_some() && again.fence != peeked.entries[0].fence);
    assert!(removed.entry.is_none() && removed.fence != peeked.entries[2].fence);
    // It may still be used to write with.
    assert!(is_stored(put(store, small, b"changed", Some(again.fence)).await));
    assert_eq!(put(store, small, b"late", Some(again.fence)).await, Written::Refused);
    let short = Put::new(small, "short".into(), SHORT);
    assert!(is_stored(store.put_if(short).await.expect("put_if")));
    pass(2 * SHORT).await;
    assert!(peek().await.0.entry.is_none(), "it has died");
}

/// Bytes of every kind and size come back as they were.
pub async fn what_was_put_is_read<S: Store>(store: &S) {
    let fence = read(store, "contract:read").await.fence;
    for (content, fence) in
        [(Bytes::from_static(b"\0\xff\r\n"), Some(fence)), (vec![7; 1 << 20].into(), None)]
    {
        let written = store.put_if(Put { fence, ..Put::new("contract:read", content.clone(), MINUTE) }).await;
        assert!(is_stored(written.expect("put_if")));
        let slot = read(store, "contract:read").await;
        let entry = slot.entry.expect("what was put");
        assert_eq!(entry.bytes, content);
        assert!(entry.remaining <= MINUTE && entry.remaining > MINUTE / 2, "{:?}", entry.remaining);
    }
    store.remove_many(&["contract:read"], MINUTE).await.expect("remove_many");
    assert!(read(store, "contract:read").await.entry.is_none(), "removed");
}

/// Found and absent ones keep their places.
pub async fn answers_are_in_the_order_of_the_names<S: Store>(store: &S) {
    put(store, "contract:one", b"1", None).await;
    put(store, "contract:three", b"3", None).await;
    let names = ["contract:three", "contract:none", "contract:one"];
    let (first, second) = (Stamp::random(), Stamp::random());
    let change = |name, stamp| Restamp { name, invalidation: Invalidation::Remove, stamp };
    store.restamp(&[change("contract:s1", first), change("contract:s2", second)]).await.expect("restamp");
    let found =
        store.get_many(&names, &["contract:s2", "contract:s3", "contract:s1"]).await.expect("get_many");
    let read: Vec<_> = found.entries.iter().map(bytes).collect();
    assert_eq!(read, [Some(&b"3"[..]), None, Some(b"1")]);
    assert_eq!((found.stamps.len(), found.stamps[0], found.stamps[2]), (3, second, first));
}

/// Whatever was there when the fence was read.
pub async fn put_is_refused_after_any_write_since_the_fence<S: Store>(store: &S) {
    let absent = read(store, "contract:write").await.fence;
    assert!(is_stored(put(store, "contract:write", b"a", Some(absent)).await));
    assert_eq!(put(store, "contract:write", b"b", Some(absent)).await, Written::Refused);
    let present = read(store, "contract:write").await.fence;
    // The same bytes again are another write.
    put(store, "contract:write", b"a", None).await;
    assert_eq!(put(store, "contract:write", b"c", Some(present)).await, Written::Refused);
    assert_eq!(bytes(&read(store, "contract:write").await), Some(&b"a"[..]));
}

/// Of an entry that was there, and of one that was not.
pub async fn put_is_refused_after_a_removal_since_the_fence<S: Store>(store: &S) {
    let absent = read(store, "contract:remove").await.fence;
    store.remove_many(&["contract:remove"], MINUTE).await.expect("remove_many");
    assert_eq!(put(store, "contract:remove", b"old", Some(absent)).await, Written::Refused);
    let removed = read(store, "contract:remove").await.fence;
    store.remove_many(&["contract:remove"], MINUTE).await.expect("remove_many");
    assert_eq!(put(store, "contract:remove", b"old", Some(removed)).await, Written::Refused);
    let removed = read(store, "contract:remove").await;
    assert!(removed.entry.is_none());
    assert!(is_stored(put(store, "contract:remove", b"new", Some(removed.fence)).await));
    let present = read(store, "contract:remove").await.fence;
    store.remove_many(&["contract:remove"], MINUTE).await.expect("remove_many");
    assert_eq!(put(store, "contract:remove", b"old", Some(present)).await, Written::Refused);
}

/// A removal included.
pub async fn put_without_a_fence_overwrites_everything<S: Store>(store: &S) {
    put(store, "contract:over", b"a", None).await;
    assert!(is_stored(put(store, "contract:over", b"b", None).await));
    store.remove_many(&["contract:over"], MINUTE).await.expect("remove_many");
    assert!(is_stored(put(store, "contract:over", b"c", None).await));
    assert_eq!(bytes(&read(store, "contract:over").await), Some(&b"c"[..]));
}

/// An absent one is made, and is the same for everybody from then on.
pub async fn stamps_stay_until_they_are_changed<S: Store>(store: &S) {
    let stamp = async || store.get_many(&[], &["contract:stamp"]).await.expect("get_many").stamps[0];
    let made = stamp().await;
    assert_eq!(stamp().await, made);
    let other = Stamp::random();
    restamp(store, "contract:stamp", Invalidation::Remove, other).await;
    assert_eq!(stamp().await, other);
}

/// And an absent one is made by either change.
pub async fn stamp_that_expires_keeps_its_first_half<S: Store>(store: &S) {
    let read = async |name| store.get_many(&[], &[name]).await.expect("get_many").stamps[0];
    let (one, two, three) = (Stamp::random(), Stamp::random(), Stamp::random());
    restamp(store, "contract:expire", Invalidation::Expire, one).await;
    assert_eq!(read("contract:expire").await, one);
    restamp(store, "contract:expire", Invalidation::Expire, two).await;
    assert_eq!(read("contract:expire").await, one.after(Invalidation::Expire, two));
    restamp(store, "contract:expire", Invalidation::Remove, three).await;
    assert_eq!(read("contract:expire").await, three);
}

async fn restamp<S: Store>(store: &S, name: &str, invalidation: Invalidation, stamp: Stamp) {
    store.restamp(&[Restamp { name, invalidation, stamp }]).await.expect("restamp");
}

/// Who takes a key by a first write can go on from it.
pub async fn fence_of_a_write_is_what_is_read_after_it<S: Store>(store: &S) {
    let absent = read(store, "contract:lease").await.fence;
    let Written::Stored(fence) = put(store, "contract:lease", b"taken", Some(absent)).await else {
        panic!("refused, though nothing was written since");
    };
    assert_eq!(read(store, "contract:lease").await.fence, fence);
    assert!(is_stored(put(store, "contract:lease", b"filled", Some(fence)).await));
    let Written::Stored(fence) = put(store, "contract:lease", b"anew", None).await else {
        panic!("refused, though it has no fence");
    };
    assert_eq!(read(store, "contract:lease").await.fence, fence);
}

fn is_stored(written: Written) -> bool {
    matches!(written, Written::Stored(_))
}

/// Or one of them would write entries that are dead at once.
pub async fn callers_who_make_a_stamp_at_once_get_the_same<S: Store>(store: &S) {
    let ask = || store.get_many(&[], &["contract:at-once"]);
    let (one, two, three, four) = tokio::join!(ask(), ask(), ask(), ask());
    let stamps = [one, two, three, four].map(|found| found.expect("get_many").stamps[0]);
    assert!(stamps.iter().all(|stamp| *stamp == stamps[0]), "{stamps:?}");
}

/// Compare and write are one step.
pub async fn one_of_many_puts_with_one_fence_is_stored<S: Store>(store: &S) {
    let fence = Some(read(store, "contract:race").await.fence);
    let put = || put(store, "contract:race", b"x", fence);
    let (one, two, three, four) = tokio::join!(put(), put(), put(), put());
    let stored = [one, two, three, four].into_iter().filter(|written| is_stored(*written)).count();
    assert_eq!(stored, 1);
}

/// And an entry whose life is over is absent.
pub async fn remaining_life_never_grows<S: Store>(store: &S, pass: &impl AsyncFn(Duration)) {
    let name = "contract:life";
    store.put_if(Put::new(name, Bytes::from_static(b"x"), 2 * SHORT)).await.expect("put_if");
    let before = read(store, name).await.entry.map_or(Duration::ZERO, |entry| entry.remaining);
    pass(SHORT).await;
    let after = read(store, name).await.entry.map_or(Duration::ZERO, |entry| entry.remaining);
    assert!(before <= 2 * SHORT && after <= before - SHORT, "{before:?}, then {after:?}");
    pass(SHORT).await;
    assert!(read(store, name).await.entry.is_none(), "its life is over");
}

/// For as long as a load from before it may come to write.
pub async fn removal_is_remembered_while_it_is_held<S: Store>(store: &S, pass: &impl AsyncFn(Duration)) {
    let absent = read(store, "contract:hold").await.fence;
    store.remove_many(&["contract:hold"], 2 * SHORT).await.expect("remove_many");
    pass(SHORT).await;
    let written = put(store, "contract:hold", b"old", Some(absent)).await;
    assert_eq!(written, Written::Refused, "the removal was forgotten before its hold was over");
}

/// A lease or a value of a short life, say: the fence from before the removal is as worthless as it was.
pub async fn removal_is_remembered_though_what_was_written_over_it_died<S: Store>(
    store: &S,
    pass: &impl AsyncFn(Duration),
) {
    let name = "contract:over-removal";
    let absent = read(store, name).await.fence;
    store.remove_many(&[name], MINUTE).await.expect("remove_many");
    let removed = read(store, name).await.fence;
    let short = Put::new(name, Bytes::from_static(b"short"), SHORT / 2).only_if(removed);
    assert!(is_stored(store.put_if(short).await.expect("put_if")));
    pass(SHORT).await;
    assert!(read(store, name).await.entry.is_none(), "its life is over");
    assert_eq!(put(store, name, b"old", Some(absent)).await, Written::Refused);
    assert_eq!(put(store, name, b"old", Some(removed)).await, Written::Refused);
}

/// What shares loads across processes: a removal refuses the value of a lease from before it, and after the end of a
/// lease the next one can be taken, which refuses the value of the first.
pub async fn lease_is_destroyed_by_a_removal_and_by_its_end<S: Store>(
    store: &S,
    pass: &impl AsyncFn(Duration),
) {
    let name = "contract:shared-load";
    let take = async |fence| {
        let lease = Put::new(name, Bytes::from_static(b"lease"), SHORT).only_if(fence);
        match store.put_if(lease).await.expect("put_if") {
            Written::Stored(fence) => fence,
            Written::Refused => panic!("refused, though nothing was written since"),
        }
    };
    let removed = take(read(store, name).await.fence).await;
    store.remove_many(&[name], MINUTE).await.expect("remove_many");
    assert_eq!(put(store, name, b"old", Some(removed)).await, Written::Refused);
    let ended = take(read(store, name).await.fence).await;
    pass(SHORT).await;
    let slot = read(store, name).await;
    assert!(slot.entry.is_none(), "its time is over");
    let latest = take(slot.fence).await;
    assert_eq!(put(store, name, b"old", Some(ended)).await, Written::Refused);
    assert!(is_stored(put(store, name, b"new", Some(latest)).await));
    assert_eq!(bytes(&read(store, name).await), Some(&b"new"[..]));
}

/// Whoever is told that there is no entry can write one, however short a moment ago its life ended.
pub async fn fence_of_what_is_no_longer_there_holds_from_the_first_moment<S: Store>(
    store: &S,
    pass: &impl AsyncFn(Duration),
) {
    let name = "contract:just-died";
    for _ in 0..20 {
        let short = Put::new(name, Bytes::from_static(b"short"), Duration::from_millis(10));
        store.put_if(short).await.expect("put_if");
        let dead = loop {
            let slot = read(store, name).await;
            if slot.entry.is_none() {
                break slot.fence;
            }
            pass(Duration::from_micros(200)).await;
        };
        pass(Duration::from_millis(3)).await;
        let written = put(store, name, b"next", Some(dead)).await;
        assert!(is_stored(written), "refused, though nothing was written since");
    }
}
