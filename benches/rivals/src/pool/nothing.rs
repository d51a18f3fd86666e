//! Pools of connections that cost nothing, so that what is left is the pool.

use std::{convert::Infallible, time::Duration};

use anyhow::Result;
use deadpool::managed::{self, Metrics, RecycleResult};

/// Connects to nowhere, at once.
pub(super) struct Nothing;

impl bb8::ManageConnection for Nothing {
    type Connection = ();
    type Error = Infallible;

    async fn connect(&self) -> Result<(), Infallible> {
        Ok(())
    }

    async fn is_valid(&self, (): &mut ()) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, (): &mut ()) -> bool {
        false
    }
}

impl managed::Manager for Nothing {
    type Type = ();
    type Error = Infallible;

    async fn create(&self) -> Result<(), Infallible> {
        Ok(())
    }

    async fn recycle(&self, (): &mut (), _: &Metrics) -> RecycleResult<Infallible> {
        Ok(())
    }
}

/// Something that is held and returned.
pub(super) trait Lender: Clone + Send + Sync + 'static {
    type Held<'a>: Send;

    /// `None` if the time was up.
    fn get(&self) -> impl Future<Output = Option<Self::Held<'_>>> + Send;
}

pub(super) type Ours = mcp_perf::pool::Pool<Nothing>;
pub(super) type Bb8 = bb8::Pool<Nothing>;
pub(super) type Deadpool = managed::Pool<Nothing>;

pub(super) fn ours(size: u32, timeout: Duration) -> Result<Ours> {
    Ok(Ours::builder("bench", Nothing).size(size).timeout(timeout).connects(8, 1e6).build()?)
}

/// Without the test of a connection that is about to be lent, since ours leaves it out, too, for one that was just used.
pub(super) async fn bb8(size: u32, timeout: Duration) -> Result<Bb8> {
    let builder = bb8::Pool::builder().max_size(size).test_on_check_out(false).connection_timeout(timeout);
    Ok(builder.build(Nothing).await?)
}

pub(super) fn deadpool(size: u32, timeout: Duration) -> Result<Deadpool> {
    let builder = managed::Pool::builder(Nothing).max_size(usize::try_from(size)?);
    Ok(builder.wait_timeout(Some(timeout)).runtime(deadpool::Runtime::Tokio1).build()?)
}

impl Lender for Ours {
    type Held<'a> = mcp_perf::pool::Connection<Nothing>;

    #[inline]
    async fn get(&self) -> Option<Self::Held<'_>> {
        Self::get(self).await.ok()
    }
}

impl Lender for Bb8 {
    type Held<'a> = bb8::PooledConnection<'a, Nothing>;

    #[inline]
    async fn get(&self) -> Option<Self::Held<'_>> {
        Self::get(self).await.ok()
    }
}

impl Lender for Deadpool {
    type Held<'a> = managed::Object<Nothing>;

    #[inline]
    async fn get(&self) -> Option<Self::Held<'_>> {
        Self::get(self).await.ok()
    }
}
