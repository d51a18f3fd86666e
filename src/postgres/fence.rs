//! Fences: what keeps out a load from before a removal, without a row for what is only absent.
//!
//! Reading writes nothing, so an absence has no row, and its fence is made of two things: the *generation* of the
//! table, a row under the empty name, and the time of the reading. To write over an absence is to insert the row if
//! there is none, the generation is still the same, and the reading was at most ten minutes ago. That
//! keeps out every load from before a removal:
//!
//! - While the removal's row is there, it is in the way of the insertion.
//! - A purge deletes no row before it has been dead for longer than ten minutes. A reading from before the removal
//!   is older still when the row is gone, and one from after it has nothing to fear.
//! - A crash, a failover and a `TRUNCATE` delete the removals, and the generation with them. The next one is
//!   another one.

use std::{error::Error as StdError, time::Duration};

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::cache::Fence;

/// What a fence saw.
pub(super) enum Seen {
    /// Nothing, in this generation and at this time; or a row with this fence, which nobody here has written.
    Absent(Uuid, Time, Uuid),
    Present(Uuid),
}

/// What the fence of an absence and a generation begin with.
const ABSENT: u8 = b'A';
/// What the fence of a row begins with.
const PRESENT: u8 = b'P';

/// The first half is the table's, the second the time of the reading.
pub(super) fn absence(generation: Uuid, read: Time) -> Fence {
    let mut fence = generation.0;
    fence[8..].copy_from_slice(&read.0.to_be_bytes());
    Fence::from_bytes(fence)
}

pub(super) fn seen(fence: Fence) -> Seen {
    let whole = Uuid(fence.to_bytes());
    let mut generation = whole;
    if generation.0[0] != ABSENT {
        return Seen::Present(whole);
    }
    let mut read = [0; 8];
    read.copy_from_slice(&whole.0[8..]);
    generation.0[8..].fill(0);
    Seen::Absent(generation, Time(i64::from_be_bytes(read)), whole)
}

pub(super) fn generation() -> Uuid {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&fastrand::u64(..).to_be_bytes());
    bytes[0] = ABSENT;
    Uuid(bytes)
}

pub(super) fn entry_fence() -> Uuid {
    let mut bytes = fastrand::u128(..).to_be_bytes();
    bytes[0] = PRESENT;
    Uuid(bytes)
}

/// 16 bytes, in the type that PostgreSQL keeps without a length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Uuid(pub(super) [u8; 16]);

/// The server's time, in microseconds of its own era. Only differences mean something here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time(i64);

impl Time {
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;

impl ToSql for Uuid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::UUID
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Uuid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        Ok(Self(raw.try_into()?))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::UUID
    }
}

impl ToSql for Time {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.put_i64(self.0);
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Time {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }
}
