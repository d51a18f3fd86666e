//! What every [`Bus`] has to keep, as functions that panic where it does not.
//!
//! A bus may lose messages, and the cache is right all the same; but not one that nobody disturbs.
//!
//! ```
//! use mcp_perf::testing::{MemoryBus, bus};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! bus::keeps_its_contract(&MemoryBus::new()).await;
//! # }
//! ```

#![expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::panic,
    reason = "these are tests: they say so by panicking"
)]

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use crate::cache::{Bus, Subscription};

/// How long a message may take, on a machine that is busy with much else.
const LONG: Duration = Duration::from_secs(20);

/// Runs every test of this module.
pub async fn keeps_its_contract<B: Bus>(bus: &B) {
    everybody_who_listens_hears_the_sender_too(bus).await;
    messages_of_any_bytes_arrive_whole(bus).await;
    channels_are_apart(bus).await;
    what_was_published_while_nobody_asked_is_heard(bus).await;
    listener_who_stops_waiting_loses_nothing(bus).await;
    subscription_after_another_was_dropped_hears(bus).await;
}

/// A long name, and one that no other test uses.
fn channel() -> String {
    format!("{:0<60}:1:{:032x}", "contract", fastrand::u128(..))
}

async fn subscribe<B: Bus>(bus: &B, channel: &str) -> B::Subscription {
    bus.subscribe(channel).await.expect("subscribe")
}

async fn publish<B: Bus>(bus: &B, channel: &str, message: impl Into<Bytes>) {
    bus.publish(channel, message.into()).await.expect("publish");
}

async fn heard(subscription: &mut impl Subscription) -> Bytes {
    match timeout(LONG, subscription.next()).await {
        Ok(message) => message.expect("next"),
        Err(_) => panic!("nothing was heard within {LONG:?}"),
    }
}

/// Who hears its own messages knows that the way is open.
pub async fn everybody_who_listens_hears_the_sender_too<B: Bus>(bus: &B) {
    let channel = channel();
    let (mut one, mut two) = (subscribe(bus, &channel).await, subscribe(bus, &channel).await);
    publish(bus, &channel, "a").await;
    assert_eq!([heard(&mut one).await, heard(&mut two).await], ["a", "a"]);
}

/// Whatever is in them, up to the longest.
pub async fn messages_of_any_bytes_arrive_whole<B: Bus>(bus: &B) {
    let channel = channel();
    let mut one = subscribe(bus, &channel).await;
    let every_byte: Vec<u8> = (0..=u8::MAX).collect();
    let longest: Vec<u8> = every_byte.iter().copied().cycle().take(bus.max_message()).collect();
    assert!(bus.max_message() >= 128, "too short for the cache");
    for message in [&b"\0"[..], b"'; --\r\n\\x00\xff", &every_byte[..128], &longest] {
        publish(bus, &channel, message.to_vec()).await;
        assert!(heard(&mut one).await == message, "a message of {} bytes came otherwise", message.len());
    }
}

/// And of the like-named, too.
pub async fn channels_are_apart<B: Bus>(bus: &B) {
    let (one, two) = (channel(), channel());
    let longer = format!("{one}:1");
    let mut listener = subscribe(bus, &one).await;
    for other in [&two, &longer, &one.to_uppercase()] {
        publish(bus, other, "not for us").await;
    }
    publish(bus, &one, "for us").await;
    assert_eq!(heard(&mut listener).await, "for us");
}

/// A message is kept until it is asked for.
pub async fn what_was_published_while_nobody_asked_is_heard<B: Bus>(bus: &B) {
    let channel = channel();
    let mut one = subscribe(bus, &channel).await;
    let sent: Vec<String> = (0..50).map(|number| format!("{number:02}")).collect();
    for message in &sent {
        publish(bus, &channel, message.clone()).await;
    }
    let mut received = Vec::new();
    for _ in &sent {
        received.push(heard(&mut one).await);
    }
    received.sort();
    assert_eq!(received, sent);
}

/// Dropping `next` at any time is safe.
pub async fn listener_who_stops_waiting_loses_nothing<B: Bus>(bus: &B) {
    let channel = channel();
    let mut one = subscribe(bus, &channel).await;
    for number in 0..50 {
        let message = number.to_string();
        let listening = async {
            loop {
                let wait = Duration::from_micros(fastrand::u64(0..300));
                if let Ok(message) = timeout(wait, one.next()).await {
                    return message.expect("next");
                }
                tokio::task::yield_now().await;
            }
        };
        let both = async { tokio::join!(publish(bus, &channel, message.clone()), listening) };
        let ((), heard) = timeout(LONG, both).await.expect("a message was lost");
        assert_eq!(heard, message);
    }
}

/// Those who go leave the others in peace.
pub async fn subscription_after_another_was_dropped_hears<B: Bus>(bus: &B) {
    let channel = channel();
    let mut stays = subscribe(bus, &channel).await;
    for message in ["a", "b", "c"] {
        let mut goes = subscribe(bus, &channel).await;
        publish(bus, &channel, message).await;
        assert_eq!([heard(&mut stays).await, heard(&mut goes).await], [message, message]);
    }
}
