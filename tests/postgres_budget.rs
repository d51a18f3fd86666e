//! Many processes, one `max_connections`: what is leased from a real PostgreSQL is leased once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]
#![allow(clippy::future_not_send, reason = "a test awaits them where it is")]

mod support;

use std::sync::Arc;
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bb8::ManageConnection as _;
use mcp_perf::{
    ErrorKind,
    clock::Clock,
    pool::{Allowance, Demand, budget::Budget},
    postgres::{ObservedShare, PostgresBudget, PostgresBudgetBuilder, PostgresManager},
    testing::{FaultProxy, Weather},
};
use support::{log::Log, postgres::PostgresServer};
use tokio::time::timeout;

const GENEROUS: Duration = Duration::from_secs(30);

fn manager(url: &str, process: u32) -> PostgresManager {
    let builder = PostgresManager::builder(url).unwrap().connect_timeout(Duration::from_secs(2));
    builder.application_name(format!("registry/{process}")).build().unwrap()
}

/// A share of four, one of which is the budget's own connection, and four blocks in stock.
fn builder(server: &PostgresServer, process: u32) -> PostgresBudgetBuilder {
    PostgresBudget::builder(manager(&server.url(), process), "registry").share(4).stock(18)
}

fn budget(server: &PostgresServer, process: u32) -> PostgresBudget {
    builder(server, process).build().unwrap()
}

fn locks(server: &PostgresServer) -> u32 {
    server
        .psql("select count(*) from pg_locks where locktype = 'advisory' and mode = 'ExclusiveLock'")
        .unwrap()
        .parse()
        .unwrap()
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let poll = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await; // polling, with a deadline
        }
    };
    timeout(GENEROUS, poll).await.unwrap_or_else(|_| panic!("not within {GENEROUS:?}: {what}"));
}

#[tokio::test]
async fn stock_is_leased_once_and_what_is_given_back_is_there_for_others() {
    let server = PostgresServer::start();
    let (one, two) = (budget(&server, 1), budget(&server, 2));
    assert_eq!((one.ceiling(), locks(&server)), (3, 0), "nothing is asked before anybody wants anything");
    assert_eq!(one.want(3).await, 3, "the share is enough");
    assert_eq!(one.want(4).await, 7);
    assert_eq!(one.want(100).await, 19);
    assert_eq!(two.want(100).await, 3, "there is nothing left but its share");
    assert_eq!((one.want(8).await, one.ceiling()), (11, 11));
    assert_eq!(two.want(100).await, 11);
    assert_eq!(one.want(0).await, 3);
    assert_eq!((two.want(100).await, locks(&server)), (19, 4));
    drop(two);
    until("the server takes back what a process held", || locks(&server) == 0).await;
    let stranger = PostgresBudget::builder(manager(&server.url(), 3), "another").share(2).stock(16).build();
    assert_eq!(one.want(100).await, 19);
    assert_eq!(stranger.unwrap().want(100).await, 17, "fleets have a stock each");
}

#[tokio::test]
async fn who_has_more_than_its_part_gives_way_to_who_wants_more_but_not_what_is_open() {
    let server = PostgresServer::start();
    let (one, two) = (budget(&server, 1), budget(&server, 2));
    assert_eq!(one.want_more(3, 100).await, 19);
    assert_eq!(one.want_more(19, 100).await, 19, "nobody else wants any");
    assert_eq!(two.want_more(3, 100).await, 3);
    for _ in 0..3 {
        assert_eq!((one.want_more(19, 100).await, locks(&server)), (15, 4), "what is open is not given back");
    }
    assert_eq!(two.want_more(3, 100).await, 3);
    assert_eq!(one.want_more(15, 100).await, 11);
    assert_eq!(two.want_more(3, 100).await, 7);
    assert_eq!(one.want_more(11, 100).await, 11);
    for _ in 0..3 {
        assert_eq!((two.want_more(7, 100).await, one.want_more(11, 100).await), (11, 11), "alike");
    }
    assert_eq!(two.want_more(3, 3).await, 3);
    one.want_more(11, 100).await;
    assert_eq!(one.want_more(11, 100).await, 19, "nobody else wants more any more");
    assert_eq!(locks(&server), 4);
    drop(one);
    let all = "select count(*) from pg_locks where locktype = 'advisory'";
    until("nothing is held", || server.psql(all).unwrap() == "0").await;
}

#[tokio::test]
async fn however_many_want_at_once_the_stock_is_not_exceeded_and_not_left_unused() {
    let server = PostgresServer::start();
    let budgets: Vec<_> = (0..3).map(|process| budget(&server, process)).collect();
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..40 {
        let mut wants = [0; 3];
        wants.fill_with(|| random.u32(0..20));
        let [one, two, three] = &budgets[..] else { panic!("three") };
        tokio::join!(one.want(wants[0]), two.want(wants[1]), three.want(wants[2]));
        let leased: u32 = budgets.iter().map(|budget| (budget.ceiling() - 3) / 4).sum();
        assert_eq!(leased, locks(&server), "round {round}: what is believed is what is locked");
        assert!(leased <= 4, "round {round}");
        for (budget, want) in budgets.iter().zip(wants) {
            assert!(budget.ceiling() < want.max(3) + 4, "round {round}: no more than was wanted");
        }
    }
}

#[tokio::test]
async fn lost_session_leaves_the_share_and_the_next_one_leases_again() {
    let server = PostgresServer::start();
    let budget = builder(&server, 1).clock(Clock::manual()).build().unwrap();
    assert_eq!(budget.want(100).await, 19);
    server
        .psql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'registry/1'")
        .unwrap();
    until("the ceiling falls without a question", || budget.ceiling() == 3).await;
    assert_eq!(budget.want(100).await, 19);
}

/// All of a manager's connections are replaced when one of them hears that the server goes down.
#[tokio::test]
async fn end_of_another_connection_is_not_the_end_of_the_lease() {
    let server = PostgresServer::start();
    let (manager, share) =
        (manager(&server.url(), 1), |manager| PostgresBudget::builder(manager, "registry"));
    let budget = share(manager.clone()).share(4).stock(18).clock(Clock::manual()).build().unwrap();
    assert_eq!(budget.want(100).await, 19);
    let (struck, other) = (manager.connect().await.unwrap(), manager.connect().await.unwrap());
    let pid: i32 = struck.query_one_cached("select pg_backend_pid()", &[]).await.unwrap().get(0);
    server.psql(&format!("select pg_terminate_backend({pid})")).unwrap();
    struck.query_one_cached("select 1", &[]).await.unwrap_err();
    until("the others are replaced", || other.is_over()).await;
    let holder = "select string_agg(distinct pid::text, ',') from pg_locks where locktype = 'advisory'";
    let before = server.psql(holder).unwrap();
    assert_eq!(budget.ceiling(), 19);
    assert_eq!((budget.want(100).await, locks(&server)), (19, 4));
    assert_eq!(server.psql(holder).unwrap(), before, "by the same session, all the time");

    // Unless the server turned out to be the primary no longer: the others lease from another one.
    let other = manager.connect().await.unwrap();
    other.batch_execute("set default_transaction_read_only = on").await.unwrap();
    other.batch_execute("create table written (id int)").await.unwrap_err();
    assert_eq!(budget.ceiling(), 3);
    until_leased(&budget).await;
    assert_ne!(server.psql(holder).unwrap(), before);

    // Or somebody who knows says so.
    let before = server.psql(holder).unwrap();
    manager.retire_all();
    assert_eq!(budget.ceiling(), 3);
    assert_eq!(budget.want_more(19, 100).await, 3);
    assert_eq!(
        (server.psql(holder).unwrap(), locks(&server)),
        (before.clone(), 4),
        "what is open yet has its blocks"
    );
    budget.want_more(3, 100).await;
    until_leased(&budget).await;
    assert_ne!(server.psql(holder).unwrap(), before);
}

async fn until_leased(budget: &PostgresBudget) {
    let again = async {
        while budget.want(100).await < 19 {
            tokio::time::sleep(Duration::from_millis(2)).await; // until the server has noticed, with a deadline
        }
    };
    timeout(GENEROUS, again).await.expect("the lease is not had again");
}

#[tokio::test]
async fn lease_that_was_not_proven_for_long_counts_no_more() {
    let server = PostgresServer::start();
    let clock = Clock::manual();
    let budget = builder(&server, 1).clock(clock.clone()).build().unwrap();
    assert_eq!(budget.want(100).await, 19);
    clock.advance(Duration::from_secs(29));
    assert_eq!(budget.ceiling(), 19);
    clock.advance(Duration::from_secs(1));
    assert_eq!(budget.ceiling(), 3);
    assert_eq!(budget.want(100).await, 19, "it was held all the time");
    assert_eq!(locks(&server), 4);
}

#[tokio::test]
async fn server_that_is_silent_or_away_leaves_the_share() {
    let server = PostgresServer::start();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()));
    let proxy = FaultProxy::start(address).await.unwrap();
    let url = format!("postgres://postgres@{}/postgres", proxy.address());
    let budget = PostgresBudget::builder(manager(&url, 1), "registry").share(4).stock(16).build().unwrap();
    let log = Log::hear();
    assert_eq!(budget.want(100).await, 19);
    proxy.set(Weather::Stall);
    for _ in 0..2 {
        assert_eq!(timeout(GENEROUS, budget.want(100)).await.unwrap(), 3);
        assert_eq!(budget.ceiling(), 3);
    }
    proxy.set(Weather::Refuse);
    assert_eq!(timeout(GENEROUS, budget.want(100)).await.unwrap(), 3);
    assert_eq!(log.count("no lease of connections"), 1, "said once");
    proxy.set(Weather::Clear);
    until_leased(&budget).await;
    assert!(log.count("connections can be leased again") > 0);
}

#[tokio::test]
async fn whoever_looks_at_a_silent_server_holds_up_nobody_who_leases() {
    let server = PostgresServer::start();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()));
    let proxy = FaultProxy::start(address).await.unwrap();
    let url = format!("postgres://postgres@{}/postgres", proxy.address());
    let budget = PostgresBudget::builder(manager(&url, 1), "registry").share(4).stock(16).build().unwrap();
    assert_eq!(budget.want(100).await, 19);
    proxy.set(Weather::Stall);
    // Asked in this order.
    let both = async { tokio::join!(budget.observe(), budget.want(100)) };
    let (observed, ceiling) = timeout(GENEROUS, both).await.expect("they wait for ever");
    assert_eq!(observed.unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(ceiling, 3);
}

#[tokio::test]
async fn caller_who_leaves_while_leasing_leaves_no_lock_that_nobody_knows_of() {
    let server = PostgresServer::start();
    let budget = budget(&server, 1);
    for micros in 0..60 {
        let left = timeout(Duration::from_micros(micros * 50), budget.want(100)).await;
        assert_eq!(budget.ceiling(), *left.as_ref().unwrap_or(&3));
        if left.is_err() {
            until("the locks are free", || locks(&server) == 0).await;
        }
    }
    assert_eq!(budget.want(100).await, 19);
}

#[tokio::test]
async fn share_by_what_is_open_grows_where_others_are_not_there_and_shrinks_when_they_are() {
    let server = PostgresServer::start();
    let budget = Budget::new(40, 4).unwrap();
    let share = |process| ObservedShare::new(manager(&server.url(), process), "registry", budget).unwrap();
    let clock = Clock::manual();
    let (one, two) = (share(1).clock(clock.clone()), share(2));
    assert_eq!((one.ceiling(), two.ceiling()), (9, 9), "the even part, before anybody looks");
    one.want(Demand::new(0, 40)).await;
    assert_eq!(one.ceiling(), 29, "it is alone, and leaves room for one more");
    let connect = async |process: u32, count: u32| {
        let mut open = Vec::new();
        for _ in 0..count {
            open.push(manager(&server.url(), process).connect().await.unwrap());
        }
        open
    };
    let mut of_one = connect(1, 29).await;
    two.want(Demand::new(0, 40)).await;
    assert_eq!(two.ceiling(), 9);
    let of_two = connect(2, 9).await;
    // All are there: whoever has more than a half gives way.
    two.want(Demand::new(9, 40)).await;
    one.want(Demand::new(29, 40)).await;
    assert_eq!((one.ceiling(), two.ceiling()), (24, 9));
    of_one.truncate(24);
    until("the server has noticed", || {
        let count = "select count(*) from pg_stat_activity where application_name = 'registry/1'";
        server.psql(count).unwrap() == "25"
    })
    .await;
    two.want(Demand::new(9, 40)).await;
    assert!((10..=15).contains(&two.ceiling()), "{}", two.ceiling());
    clock.advance(Duration::from_secs(30));
    assert_eq!(one.ceiling(), 9, "nobody looked for half a minute");
    drop((of_one, of_two));
}

#[tokio::test]
async fn share_by_what_is_open_is_the_even_part_when_the_server_does_not_say() {
    let server = PostgresServer::start();
    let proxy = FaultProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()))).await.unwrap();
    let url = format!("postgres://postgres@{}/postgres", proxy.address());
    let share = ObservedShare::new(manager(&url, 1), "registry", Budget::new(40, 4).unwrap()).unwrap();
    let log = Log::hear();
    share.want(Demand::new(0, 40)).await;
    assert_eq!(share.ceiling(), 29);
    for weather in [Weather::Stall, Weather::Refuse] {
        proxy.set(weather);
        timeout(GENEROUS, share.want(Demand::new(0, 40))).await.unwrap();
        assert_eq!(share.ceiling(), 9);
    }
    assert_eq!(log.count("nobody says what is open"), 1, "said once");
    proxy.set(Weather::Clear);
    share.want(Demand::new(0, 40)).await;
    assert_eq!((share.ceiling(), log.count("it is known again")), (29, 1));
    let impossible = ObservedShare::new(manager(&url, 1), "registry", Budget::new(40, 40).unwrap());
    assert!(impossible.unwrap_err().to_string().starts_with("budget: "));
}

#[tokio::test]
async fn process_that_is_not_called_by_the_name_of_its_fleet_has_the_even_part_and_is_told_once() {
    let server = PostgresServer::start();
    let stranger = PostgresManager::builder(&server.url()).unwrap().build().unwrap();
    let share = ObservedShare::new(stranger, "registry", Budget::new(40, 4).unwrap()).unwrap();
    let log = Log::hear();
    for _ in 0..3 {
        share.want(Demand::new(0, 40)).await;
        assert_eq!(share.ceiling(), 9);
    }
    assert_eq!(log.count("does not begin with the fleet's name"), 1);
}

#[tokio::test]
async fn server_says_how_many_connections_the_fleet_and_others_have() {
    let server = PostgresServer::start_with(&[("max_connections", "20")]);
    let (one, two) = (budget(&server, 1), budget(&server, 2));
    one.want(4).await;
    let observed = two.observe().await.unwrap();
    assert_eq!((observed.max_connections, observed.reserved), (20, 3));
    assert_eq!((observed.open, observed.of_fleet, observed.processes), (2, 2, 2));
    assert_eq!(observed.fair_share(), 7); // 17, of which 15, for two
    assert_eq!(two.observe().await.unwrap(), observed, "on the connection that is there");
}

/// Of sessions of other roles hardly anything is shown to a user without privileges.
#[tokio::test]
async fn connections_of_other_roles_count() {
    let server = PostgresServer::start_with(&[("max_connections", "20")]);
    server.psql("create role app login").unwrap();
    let stranger = manager(&server.url(), 7).connect().await.unwrap();
    let app = server.url().replace("postgres@", "app@");
    let budget = PostgresBudget::builder(manager(&app, 1), "registry").share(4).build().unwrap();
    let observed = budget.observe().await.unwrap();
    assert_eq!((observed.open, observed.of_fleet), (2, 2));
    drop(stranger);
}

/// The process shares what it gave to its pool.
#[tokio::test]
async fn budget_that_was_given_to_a_pool_can_still_be_asked() {
    let server = PostgresServer::start();
    let budget = Arc::new(budget(&server, 1));
    let pool = manager(&server.url(), 1).pool("shares").adaptive(1..=16).allowance(Arc::clone(&budget));
    let pool = pool.build().unwrap();
    until("the pool has its share", || pool.stats().ceiling == 3).await;
    assert_eq!(budget.ceiling(), 3);
    assert!(budget.observe().await.unwrap().open >= 1);
}

#[test]
fn impossible_settings_are_errors_that_name_the_field() {
    let builder = |fleet: &str| PostgresBudget::builder(manager("postgres://user:hunter2@host", 1), fleet);
    for (builder, field) in [
        (builder("").share(2), "fleet"),
        (builder("a/b").share(2), "fleet"),
        (builder("a"), "share"),
        (builder("a").share(1), "share"),
        (builder("a").share(2).stock(u32::MAX), "stock"),
    ] {
        assert!(!format!("{builder:?}").contains("hunter2"));
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().starts_with(field), "{error}");
    }
}
