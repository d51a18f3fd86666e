// cargo run --example tiered_cache
// REDIS_URL=redis://127.0.0.1:6379 cargo run --example tiered_cache
//
//! A cache in two tiers from beginning to end: two servers that share a remote tier, and behind it a warehouse that
//! is asked too often, then changes, then is slow, and then down. With `REDIS_URL` set the remote tier is that Redis,
//! else one in memory, for which a program of yours needs the feature `test-util`.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use mcp_perf::{
    Error, ErrorKind,
    cache::{Cache, Key, Loaded, RemoteState, Store},
    clock::Clock,
    redis::RedisStore,
    testing::MemoryStore,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

const MOMENT: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    match std::env::var("REDIS_URL") {
        Ok(url) => tour(RedisStore::new(&url)?).await,
        Err(_) => tour(MemoryStore::new(Clock::system())).await,
    }
}

/// The cache as each of the two servers has it.
async fn server<S: Store + Clone>(store: &S) -> Result<Cache<String>, Error> {
    Cache::builder("tiered_cache")
        .time_to_live(60 * SECOND)
        // For a minute after that a value is still served at once, while a load runs behind it;
        .stale_while_revalidate(60 * SECOND)
        // for an hour it stands in where the warehouse is down, or takes longer than a moment.
        .stale_if_error(3_600 * SECOND)
        .soft_timeout(MOMENT)
        .remote(store.clone())
        // For so long one server may not know what another one removed.
        .max_staleness(MOMENT)
        .build()
        .await
}

#[expect(clippy::print_stdout, reason = "it is what the example is for")]
async fn tour<S: Store + Clone>(store: S) -> Result<(), Error> {
    let (north, south) = (server(&store).await?, server(&store).await?);
    let warehouse = Warehouse::default();
    north.clear().await?; // whatever an earlier run left in Redis

    println!("A hundred callers in the north ask for lamp 1 at once, and then somebody in the south.");
    let ask = |_| {
        let (north, load) = (north.clone(), warehouse.lamp(1));
        async move { north.get_or_load_tagged(&lamp(1), &["lamps"], load).await }
    };
    for answer in (0..100).map(ask).collect::<JoinSet<_>>().join_all().await {
        assert_eq!(answer?, "lamp 1 of the 1st edition");
    }
    until_shared(&north, &lamp(1)).await;
    let answer = south.get_or_load_tagged(&lamp(1), &["lamps"], warehouse.lamp(1)).await?;
    assert_eq!(warehouse.queries(), 1);
    println!("  {answer}: one query, for all of them. The south found it in the remote tier.\n");

    println!("The south asks for lamps 1 to 5.");
    let (wanted, source) = (1..=5, warehouse.clone());
    let keys: Vec<_> = wanted.clone().map(lamp).collect();
    let answers = south
        .get_or_load_many(&keys, &["lamps"], |missing| async move {
            let missing = wanted.filter(|id| missing.contains(&lamp(*id))).collect();
            let found = source.query(missing).await?;
            Ok::<_, io::Error>(found.into_iter().map(|(id, found)| (lamp(id), Ok::<_, io::Error>(found))))
        })
        .await;
    assert!(answers.iter().all(Result::is_ok) && warehouse.queries() == 2);
    println!("  One query more, for the four that were missing.\n");

    println!("Both ask for lamp 404, which there is not.");
    for server in [&north, &south, &north] {
        let answer = server.get_or_load_tagged(&lamp(404), &["lamps"], warehouse.lamp(404)).await;
        assert_eq!(answer.map_err(|error| error.kind()), Err(ErrorKind::NotFound));
        until_shared(&north, &lamp(404)).await;
    }
    assert_eq!(warehouse.queries(), 3);
    println!("  That there is none is an answer too, and remembered: one query more.\n");

    println!("The warehouse has the 2nd edition of all lamps. The north is told, and removes their tag.");
    warehouse.edition.store(2, Relaxed);
    north.remove_by_tag("lamps").await?;
    let why = north.explain(&lamp(1)).await.to_string();
    assert!(why.starts_with("in memory: removed since (by its tag `lamps`)"), "{why}");
    println!("  What the north says of lamp 1: {why}.");
    north.get_or_load_tagged(&lamp(1), &["lamps"], warehouse.lamp(1)).await?;
    until_shared(&north, &lamp(1)).await;
    sleep(MOMENT).await;
    let answer = south.get_or_load_tagged(&lamp(1), &["lamps"], warehouse.lamp(1)).await?;
    assert_eq!((answer.as_str(), warehouse.queries()), ("lamp 1 of the 2nd edition", 4));
    println!("  What the south has a moment later: {answer}.\n");

    println!("The offer of the day is fresh for two seconds, which pass.");
    let offer = Key::public("offer");
    let first = south.get_or_load(&offer, warehouse.offer()).await?;
    warehouse.edition.store(3, Relaxed);
    sleep(2 * SECOND).await;
    let stale = south.get_or_load(&offer, warehouse.offer()).await?;
    assert_eq!(stale, first);
    println!("  Nobody waits: {stale}, while the next one is loaded.");
    until_shared(&south, &offer).await;
    let second = south.get_or_load(&offer, warehouse.offer()).await?;
    assert_eq!(second, "lamp 7 of the 3rd edition");
    println!("  And then: {second}.\n");

    println!("The offer is made to expire, and the warehouse is slow.");
    warehouse.edition.store(4, Relaxed);
    warehouse.mood.store(SLOW, Relaxed);
    north.expire(&offer).await?;
    let stale = north.get_or_load(&offer, warehouse.offer()).await?;
    assert_eq!(stale, second);
    println!("  After a moment of waiting: {stale}. The load goes on.");
    until_shared(&north, &offer).await;
    println!("  And then: {}.\n", north.get_or_load(&offer, warehouse.offer()).await?);

    println!("It is made to expire again, and the warehouse is down.");
    warehouse.mood.store(DOWN, Relaxed);
    north.expire(&offer).await?;
    let queries = warehouse.queries();
    for _ in 0..100 {
        assert_eq!(north.get_or_load(&offer, warehouse.offer()).await?, "lamp 7 of the 4th edition");
    }
    assert_eq!(warehouse.queries(), queries + 1);
    println!("  A hundred callers get the last one there was, and the warehouse was asked once.");
    let Err(error) = north.get_or_load(&lamp(9), warehouse.lamp(9)).await else { unreachable!() };
    let Some(cause) = error.downcast_source::<io::Error>() else { unreachable!() };
    println!("  Where there never was one, they are told: {error}: {cause}.\n");

    for (server, stats) in [("north", north.stats()), ("south", south.stats())] {
        let (hits, stale, negative, loads) = (stats.hits, stats.stale_hits, stats.negative_hits, stats.loads);
        let joined = stats.joined;
        println!(
            "{server}: {hits} hits, {stale} stale, {negative} negative; {loads} loads, joined by {joined}"
        );
    }
    Ok(())
}

fn lamp(id: u32) -> Key<'static> {
    Key::public("lamp").part(&id.to_le_bytes())
}

/// Waits until the remote tier has a fresh answer: a load answers its callers before it shares what it found.
async fn until_shared(server: &Cache<String>, key: &Key<'_>) {
    let shared = async {
        while !matches!(server.explain(key).await.remote, RemoteState::Fresh(_) | RemoteState::NotFound(_)) {
            sleep(MOMENT / 20).await;
        }
    };
    let is_shared = timeout(10 * SECOND, shared).await.is_ok();
    assert!(is_shared, "never shared: {}", server.explain(key).await);
}

/// The source of it all.
#[derive(Clone)]
struct Warehouse(Arc<State>);

struct State {
    edition: AtomicU32,
    queries: AtomicU32,
    mood: AtomicU32,
}

const SLOW: u32 = 1;
const DOWN: u32 = 2;

type Loading = Pin<Box<dyn Future<Output = io::Result<Loaded<String>>> + Send>>;

impl Warehouse {
    fn queries(&self) -> u32 {
        self.queries.load(Relaxed)
    }

    async fn query(self, ids: Vec<u32>) -> io::Result<Vec<(u32, String)>> {
        self.queries.fetch_add(1, Relaxed);
        match self.mood.load(Relaxed) {
            SLOW => sleep(SECOND).await,
            DOWN => return Err(io::Error::other("the warehouse is down")),
            _ => sleep(MOMENT / 10).await,
        }
        let edition = ["1st", "2nd", "3rd", "4th"][self.edition.load(Relaxed) as usize - 1];
        let lamp = |id| (id, format!("lamp {id} of the {edition} edition"));
        Ok(ids.into_iter().filter(|id| *id < 100).map(lamp).collect())
    }

    /// A loader of one lamp.
    fn lamp(&self, id: u32) -> impl FnOnce() -> Loading + Send + use<> {
        let warehouse = self.clone();
        move || {
            Box::pin(async move {
                let found = warehouse.query(vec![id]).await?.pop();
                Ok(found.map_or_else(Loaded::not_found, |(_, lamp)| Loaded::new(lamp)))
            })
        }
    }

    /// A loader of the offer of the day, which says how long that is good for.
    fn offer(&self) -> impl FnOnce() -> Loading + Send + use<> {
        let lamp = self.lamp(7);
        move || Box::pin(async move { Ok(lamp().await?.time_to_live(2 * SECOND)) })
    }
}

impl Default for Warehouse {
    fn default() -> Self {
        Self(Arc::new(State { edition: 1.into(), queries: 0.into(), mood: 0.into() }))
    }
}

impl std::ops::Deref for Warehouse {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}
