//! One row by its key: a connection is taken, the statement found, the row fetched, the connection returned; the server on
//! one core and the caller on another, or what counts is which thread the system wakes.
//!
//! bb8-postgres is asked as its page does, `query` with the text, which the driver prepares each time. deadpool keeps
//! the statement; so does bb8 where its user prepares it, `bb8_by_hand`.

use std::time::Duration;

use anyhow::Result;
use bb8_postgres::PostgresConnectionManager;
use tokio::runtime::Runtime;
use tokio_postgres::NoTls;

use super::{
    Effort,
    peers::{self, Peer, Session},
    site::{Placement, Site, TIMEOUT},
    work::Sql,
};
use crate::{
    measure::{Rounds, Stopwatch},
    report::Comparison,
};

const SIZE: u32 = 4;
const ROUNDS: Rounds = Rounds { count: 31, slice: Duration::from_millis(100) };

pub(super) fn run(effort: Effort) -> Result<()> {
    let plan = Rounds { count: effort.pick(ROUNDS.count, 5), ..ROUNDS };
    let site = Site::start(Placement::Apart, 100)?;
    let (runtime, url) = (&site.runtime, site.url());
    let _entered = runtime.enter();
    let ours = peers::ours(&url)?.size(SIZE).build()?;
    let manager = PostgresConnectionManager::new(url.parse()?, NoTls);
    let builder = bb8::Pool::builder().max_size(SIZE).test_on_check_out(false).connection_timeout(TIMEOUT);
    let bare = runtime.block_on(builder.build(manager))?;
    let by_hand = runtime.block_on(peers::bb8(&url, SIZE))?;
    let deadpool = peers::deadpool(&url, SIZE)?;

    let line = Comparison::rate;
    let mut ours = |count| in_turn(runtime, &ours, count);
    let bare = &bare;
    line("pool.prepared.bb8_postgres", "bb8_postgres").at_least(1.3).run(plan, &mut ours, &mut |count| {
        let stopwatch = Stopwatch::start();
        runtime.block_on(runtime.spawn(as_text(bare.clone(), count)))??;
        Ok(stopwatch.elapsed())
    })?;
    line("pool.prepared.deadpool_postgres", "deadpool_postgres").at_least(1.0).run(
        plan,
        &mut ours,
        &mut |count| in_turn(runtime, &deadpool, count),
    )?;
    line("pool.prepared.bb8_by_hand", "bb8_by_hand")
        .run(plan, &mut ours, &mut |count| in_turn(runtime, &by_hand, count))
}

/// So many rows, one after the other. In a task, where servers are: outside of the workers, who drives his connection in
/// a task of its own would wake another thread for every query.
fn in_turn<P: Peer>(runtime: &Runtime, pool: &P, count: u64) -> Result<Duration> {
    let stopwatch = Stopwatch::start();
    let pool = pool.clone();
    runtime.block_on(runtime.spawn(async move {
        for turn in 0..count {
            let rows = pool.get().await?.query(Sql::Balance, &[key(turn)]).await?;
            anyhow::ensure!(rows.len() == 1, "{} rows", rows.len());
        }
        Ok(())
    }))??;
    Ok(stopwatch.elapsed())
}

async fn as_text(pool: bb8::Pool<PostgresConnectionManager<NoTls>>, count: u64) -> Result<()> {
    for turn in 0..count {
        let rows = pool.get().await?.query(Sql::Balance.text(), &[&key(turn)]).await?;
        anyhow::ensure!(rows.len() == 1, "{} rows", rows.len());
    }
    Ok(())
}

fn key(turn: u64) -> i64 {
    i64::try_from(turn % 1_000).unwrap_or_default() + 1
}
