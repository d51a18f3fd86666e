//! Once a call that writes has ended, no answer from before it is served.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use mcp_perf::{
    ErrorKind,
    cache::Cache,
    clock::Clock,
    rmcp::{Answer, Performance, ToolPolicy},
    testing::MemoryStore,
};
use rmcp::{ErrorData, ServerHandler, model::CallToolRequestParams};
use serde_json::json;

use crate::{
    fixture::{
        Client, GENERATIONS, Gate, Generation, MINUTE, Pending, Response, Scripted, context, failed, params,
        said, settle, until,
    },
    stepped::{Step, Stepped},
};

/// What `read` reads and `write` writes, with a gate on either side of the touch.
#[derive(Clone)]
struct Book {
    page: Arc<AtomicU64>,
    has_read: Gate,
    before_write: Gate,
    after_write: Gate,
    how_writing_ends: fn() -> Response,
}

impl Book {
    fn new(how_writing_ends: fn() -> Response) -> Self {
        Self {
            page: Arc::default(),
            has_read: Gate::new(),
            before_write: Gate::new(),
            after_write: Gate::new(),
            how_writing_ends,
        }
    }

    /// `read` and `write` pass their gates; `peek` and `scribble` do the same without.
    fn server(&self) -> Scripted {
        let book = || self.clone();
        Scripted::new()
            .sharing("read", book(), async |book: Self, _| {
                let page = book.page.load(Ordering::SeqCst);
                book.has_read.pass().await;
                said(format!("page {page}"))
            })
            .sharing("peek", book(), async |book: Self, _| {
                said(format!("page {}", book.page.load(Ordering::SeqCst)))
            })
            .sharing("write", book(), async |book: Self, _| {
                book.before_write.pass().await;
                book.page.fetch_add(1, Ordering::SeqCst);
                book.after_write.pass().await;
                (book.how_writing_ends)()
            })
            .sharing("scribble", book(), async |book: Self, _| {
                book.page.fetch_add(1, Ordering::SeqCst);
                (book.how_writing_ends)()
            })
    }

    fn wrapped(&self) -> Performance<Scripted> {
        let tag = |_: &_| vec!["book".to_owned()];
        Performance::builder(self.server())
            .cache_tool("read", ToolPolicy::public(MINUTE).tag("book"))
            .cache_tool("peek", ToolPolicy::public(MINUTE).tag("book"))
            .invalidate_after("write", tag)
            .invalidate_after("scribble", tag)
            .build()
            .unwrap()
    }
}

fn written() -> Response {
    said("written")
}

fn tool_error() -> Response {
    failed("perhaps written")
}

fn protocol_error() -> Response {
    Err(ErrorData::internal_error("perhaps written", None))
}

fn panicking() -> Response {
    panic!("on purpose: a write that panics after it wrote")
}

#[tokio::test]
async fn nothing_from_before_a_write_is_served_after_it_however_it_ended() {
    for generation in GENERATIONS {
        for how in [written, tool_error, protocol_error] {
            let book = Book::new(how);
            let client = Client::of(book.wrapped(), generation).await;
            assert_eq!(client.hear("peek", json!({})).await, "page 0");
            assert_eq!(client.hear("peek", json!({})).await, "page 0");
            let _ = client.call("scribble", json!({})).await;
            assert_eq!(client.hear("peek", json!({})).await, "page 1");
            assert_eq!(client.hear("peek", json!({})).await, "page 1");
        }
    }
}

#[tokio::test]
async fn answer_made_while_a_write_ran_is_not_served_after_it() {
    for how in [written, tool_error, protocol_error] {
        let book = Book::new(how);
        let client = Arc::new(Client::of(book.wrapped(), Generation::Legacy).await);
        // A reader has read the old page, and is still at work.
        let reader = Pending::call(&client, "read", json!({}));
        book.has_read.reached().await;
        // The write begins, writes and ends.
        let writer = Pending::call(&client, "write", json!({}));
        book.before_write.open();
        book.after_write.open();
        let _ = writer.reply().await;
        // Whoever asks now does not get the old page, neither by waiting for the old reader …
        let newcomer = Pending::call(&client, "read", json!({}));
        book.has_read.reached().await;
        book.has_read.open();
        book.has_read.open();
        assert_eq!(newcomer.text().await, "page 1");
        // … nor once that one has ended.
        assert_eq!(reader.text().await, "page 0", "who asked before the write may have the old one");
        assert_eq!(client.hear("read", json!({})).await, "page 1");
    }
}

#[tokio::test]
async fn answer_that_ended_last_and_is_old_is_not_kept() {
    let book = Book::new(written);
    let client = Arc::new(Client::of(book.wrapped(), Generation::Legacy).await);
    let reader = Pending::call(&client, "read", json!({}));
    book.has_read.reached().await;
    let writer = Pending::call(&client, "write", json!({}));
    book.before_write.open();
    book.after_write.open();
    writer.reply().await.unwrap();
    book.has_read.open();
    assert_eq!(reader.text().await, "page 0");
    book.has_read.open();
    assert_eq!(client.hear("read", json!({})).await, "page 1");
}

#[tokio::test]
async fn answer_kept_while_a_write_was_under_way_is_gone_after_it() {
    let book = Book::new(written);
    let client = Arc::new(Client::of(book.wrapped(), Generation::Legacy).await);
    let writer = Pending::call(&client, "write", json!({}));
    book.before_write.reached().await;
    // Read, answered and kept before the write touches anything.
    assert_eq!(client.hear("peek", json!({})).await, "page 0");
    book.before_write.open();
    book.after_write.reached().await;
    book.after_write.open();
    writer.reply().await.unwrap();
    assert_eq!(client.hear("peek", json!({})).await, "page 1");
}

#[tokio::test]
async fn write_that_panicked_is_followed_by_the_invalidation() {
    let book = Book::new(panicking);
    let wrapped = book.wrapped();
    let client = Client::of(wrapped.clone(), Generation::Legacy).await;
    assert_eq!(client.hear("peek", json!({})).await, "page 0");
    let write = tokio::spawn(async move {
        let _ = wrapped.call_tool(params("scribble", json!({})), context(Generation::Legacy)).await;
    });
    assert!(write.await.unwrap_err().is_panic());
    settle().await;
    assert_eq!(client.hear("peek", json!({})).await, "page 1");
}

#[tokio::test]
async fn write_that_was_dropped_in_the_middle_is_followed_by_the_invalidation() {
    let book = Book::new(written);
    let wrapped = book.wrapped();
    let client = Client::of(wrapped.clone(), Generation::Legacy).await;
    assert_eq!(client.hear("peek", json!({})).await, "page 0");
    let write = tokio::spawn(async move {
        let _ = wrapped.call_tool(params("write", json!({})), context(Generation::Legacy)).await;
    });
    book.before_write.open();
    book.after_write.reached().await;
    assert_eq!(client.hear("peek", json!({})).await, "page 0", "the write has not ended");
    write.abort();
    assert!(write.await.unwrap_err().is_cancelled());
    settle().await;
    assert_eq!(client.hear("peek", json!({})).await, "page 1");
}

#[tokio::test]
async fn write_whose_client_left_or_cancelled_is_followed_by_the_invalidation() {
    for cancels in [true, false] {
        let book = Book::new(written);
        let wrapped = book.wrapped();
        let client = Client::of(wrapped.clone(), Generation::Legacy).await;
        assert_eq!(client.hear("peek", json!({})).await, "page 0");
        let writer = Client::of(wrapped.clone(), Generation::Legacy).await;
        let request = writer.start("tools/call", json!({"name": "write", "arguments": {}})).await;
        book.before_write.reached().await;
        if cancels {
            request.cancel(None).await.unwrap();
            writer.ask("ping", json!({})).await.unwrap();
        } else {
            drop((request, writer));
            settle().await;
        }
        // The tool does not watch its token, and writes all the same.
        book.before_write.open();
        book.after_write.reached().await;
        book.after_write.open();
        until("the write has been timed, so it has ended", || {
            let all = wrapped.timing().snapshot();
            all.iter().any(|series| series.target == "write" && series.ok == 1)
        })
        .await;
        assert_eq!(client.hear("peek", json!({})).await, "page 1", "cancels: {cancels}");
    }
}

#[tokio::test]
async fn write_takes_only_what_its_arguments_name() {
    let tag = |arguments: &rmcp::model::JsonObject| {
        let id = arguments.get("id").and_then(|id| id.as_str());
        id.map(|id| format!("item:{id}")).into_iter().collect::<Vec<_>>()
    };
    let server = Scripted::new().counting("read").counting("other").counting("write");
    let wrapped = Performance::builder(server)
        .cache_tool("read", ToolPolicy::public(MINUTE).tags(tag))
        .cache_tool("other", ToolPolicy::public(MINUTE))
        .invalidate_after("write", tag)
        .invalidate_after("write", |_| vec!["unused".to_owned()])
        .build()
        .unwrap();
    let client = Client::of(wrapped, Generation::Legacy).await;
    let hear = async || {
        let one = client.hear("read", json!({"id": "1"})).await;
        let two = client.hear("read", json!({"id": "2"})).await;
        let untagged = client.hear("read", json!({})).await;
        [one, two, untagged, client.hear("other", json!({})).await]
    };
    assert_eq!(hear().await, ["run 1", "run 2", "run 3", "run 1"]);
    client.hear("write", json!({"id": "2"})).await;
    assert_eq!(hear().await, ["run 1", "run 4", "run 3", "run 1"]);
    // Without arguments, with others, and with those of another shape.
    client.ask("tools/call", json!({"name": "write"})).await.unwrap();
    client.hear("write", json!({"id": 1})).await;
    assert_eq!(hear().await, ["run 1", "run 4", "run 3", "run 1"]);
}

#[tokio::test]
async fn private_answers_of_everybody_go_with_their_tag() {
    let server = Scripted::new().counting("inbox").counting("send");
    let wrapped = Performance::builder(server)
        .cache_tool("inbox", ToolPolicy::private(MINUTE).tag("mail"))
        .identity(|context| Some(mcp_perf::rmcp::Principal::new(context.client_info()?.name)))
        .invalidate_after("send", |_| vec!["mail".to_owned()])
        .build()
        .unwrap();
    let alice = Client::named("alice", wrapped.clone(), Generation::Legacy).await;
    let bob = Client::named("bob", wrapped, Generation::Legacy).await;
    assert_eq!(
        (alice.hear("inbox", json!({})).await, bob.hear("inbox", json!({})).await),
        ("run 1".into(), "run 2".into())
    );
    alice.hear("send", json!({})).await;
    assert_eq!(
        (alice.hear("inbox", json!({})).await, bob.hear("inbox", json!({})).await),
        ("run 3".into(), "run 4".into())
    );
}

#[tokio::test]
async fn write_that_was_refused_by_the_limit_takes_nothing() {
    use mcp_perf::limit::{Limiter, Quota};
    let limiter = Limiter::builder().policy("writes", Quota::per_hour(1)).build().unwrap();
    let writes = limiter.scope("writes").unwrap();
    let server = Scripted::new().counting("read").counting("write");
    let wrapped = Performance::builder(server)
        .cache_tool("read", ToolPolicy::public(MINUTE).tag("book"))
        .invalidate_after("write", |_| vec!["book".to_owned()])
        .limit(limiter, move |call| if call.name == "write" { vec![writes.on(&())] } else { Vec::new() })
        .build()
        .unwrap();
    let client = Client::of(wrapped, Generation::Legacy).await;
    client.hear("write", json!({})).await;
    assert_eq!(client.hear("read", json!({})).await, "run 1");
    assert!(client.call("write", json!({})).await.is_err());
    assert_eq!(client.hear("read", json!({})).await, "run 1");
}

// ===== with a store that other processes share =====

async fn node(server: &Scripted, clock: &Clock, store: &Stepped<MemoryStore>) -> Performance<Scripted> {
    let answers: Cache<Answer> = Cache::builder("answers")
        .clock(clock.clone())
        .remote(store.clone())
        // Calls are held for as long as the test likes.
        .remote_timeout(MINUTE)
        .build()
        .await
        .unwrap();
    Performance::builder(server.clone())
        .cache_tool("peek", ToolPolicy::public(MINUTE).tag("book"))
        .invalidate_after("scribble", |_| vec!["book".to_owned()])
        .answers(answers)
        .build()
        .unwrap()
}

#[tokio::test]
async fn answer_of_a_write_is_sent_only_once_the_store_knows_of_it() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let server = Book::new(written).server();
    let here = Arc::new(Client::of(node(&server, &clock, &store).await, Generation::Legacy).await);
    let there = Client::of(node(&server, &clock, &store).await, Generation::Legacy).await;
    assert_eq!(here.hear("peek", json!({})).await, "page 0");
    let mut held = store.hold(Step::BeforeInvalidation);
    let write = Pending::call(&here, "scribble", json!({}));
    held.reached().await;
    settle().await;
    assert!(!write.is_answered(), "another process could still read the old answer in the store");
    held.go_on();
    write.reply().await.unwrap();
    // It never had the old one in memory.
    assert_eq!(there.hear("peek", json!({})).await, "page 1");
}

#[tokio::test]
async fn write_that_was_dropped_while_it_invalidated_still_tells_the_store() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let server = Book::new(written).server();
    let here = node(&server, &clock, &store).await;
    let there = Client::of(node(&server, &clock, &store).await, Generation::Legacy).await;
    let client = Client::of(here.clone(), Generation::Legacy).await;
    assert_eq!(client.hear("peek", json!({})).await, "page 0");
    let mut held = store.hold(Step::BeforeInvalidation);
    let write = tokio::spawn(async move {
        let request: CallToolRequestParams = params("scribble", json!({}));
        let _ = here.call_tool(request, context(Generation::Legacy)).await;
    });
    held.reached().await;
    write.abort();
    assert!(write.await.unwrap_err().is_cancelled());
    held.go_on();
    settle().await;
    assert_eq!(there.hear("peek", json!({})).await, "page 1");
}

#[tokio::test]
async fn write_of_several_tags_that_was_dropped_after_the_first_still_invalidates_the_others() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let answers: Cache<Answer> = Cache::builder("answers")
        .clock(clock)
        .remote(store.clone())
        .remote_timeout(MINUTE)
        .build()
        .await
        .unwrap();
    let server = Scripted::new().counting("one").counting("two").counting("write");
    let wrapped = Performance::builder(server)
        .cache_tool("one", ToolPolicy::public(MINUTE).tag("one"))
        .cache_tool("two", ToolPolicy::public(MINUTE).tag("two"))
        .invalidate_after("write", |_| vec!["one".to_owned(), "two".to_owned()])
        .answers(answers)
        .build()
        .unwrap();
    let client = Client::of(wrapped.clone(), Generation::Legacy).await;
    assert_eq!(client.hear("one", json!({})).await, "run 1");
    assert_eq!(client.hear("two", json!({})).await, "run 1");
    let mut held = store.hold(Step::BeforeInvalidation);
    let write = tokio::spawn(async move {
        let _ = wrapped.call_tool(params("write", json!({})), context(Generation::Legacy)).await;
    });
    held.reached().await;
    write.abort();
    assert!(write.await.unwrap_err().is_cancelled());
    held.go_on();
    settle().await;
    assert_eq!(client.hear("one", json!({})).await, "run 2");
    assert_eq!(client.hear("two", json!({})).await, "run 2");
}

#[test]
fn tool_whose_answers_are_kept_cannot_be_one_that_writes() {
    // A hit would not run it, so nothing would be written.
    let error = Performance::builder(Scripted::new().counting("both"))
        .cache_tool("both", ToolPolicy::public(MINUTE))
        .invalidate_after("both", |_| vec!["book".to_owned()])
        .build()
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("invalidate_after") && error.to_string().contains("both"), "{error}");
}
