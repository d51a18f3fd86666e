//! Waiting for what will come, never for a time.

use std::time::Duration;

/// Asks until there is something, and fails the test if that takes a minute.
#[allow(clippy::future_not_send, reason = "a test awaits it where it is")]
pub async fn until<T>(what: &str, done: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Duration::from_secs(60);
    let poll = async {
        loop {
            if let Some(done) = done().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(2)).await; // polling, with a deadline
        }
    };
    tokio::time::timeout(deadline, poll).await.unwrap_or_else(|_| panic!("not within {deadline:?}: {what}"))
}

/// Lets every task that can run do so, until none can.
pub async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
