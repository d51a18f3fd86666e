//! A few connections to the database, lent out one call at a time.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Result;
use rusqlite::{Connection, OpenFlags, config::DbConfig};
use tokio::{sync::Semaphore, task};

/// Up to `limit` connections, opened when first needed.
#[derive(Clone)]
pub(crate) struct Connections {
    path: PathBuf,
    flags: OpenFlags,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Connections {
    pub(crate) fn new(path: &Path, access: OpenFlags, limit: usize) -> Self {
        Self {
            path: path.to_owned(),
            // One thread at a time uses a connection, so it needs no lock of its own.
            flags: access | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            permits: Arc::new(Semaphore::new(limit)),
            idle: Arc::default(),
        }
    }

    /// Runs `work` on a thread that may block. Waiting for a connection blocks no thread.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = Arc::clone(&self.permits).acquire_owned().await?;
        let connections = self.clone();
        let outcome = task::spawn_blocking(move || {
            let idle = connections.idle().pop();
            let mut connection = idle.map_or_else(|| connections.open(), Ok)?;
            let outcome = work(&mut connection);
            connections.idle().push(connection);
            // Only now, and on this thread: a caller that gives up frees no connection in use.
            drop(permit);
            outcome
        });
        Ok(outcome.await??)
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(&self.path, self.flags)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.execute_batch(PRAGMAS)?;
        // A plan that holds for all arguments, or statements would be prepared again for new ones.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        Ok(connection)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For every connection that serves. With a write-ahead log, `NORMAL` cannot corrupt the database;
/// a power cut may lose the last reports of health.
const PRAGMAS: &str = "
    PRAGMA synchronous = NORMAL;
    PRAGMA mmap_size = 268435456;
    PRAGMA cache_size = -32768;
    PRAGMA temp_store = MEMORY;
";
