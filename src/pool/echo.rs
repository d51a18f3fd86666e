//! Connections of tests that are about nothing but the pool.

use std::convert::Infallible;

use bb8::ManageConnection;

/// Connects to nothing, at once, for ever.
pub(super) struct Echo;

impl ManageConnection for Echo {
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
