//! A PostgreSQL, and what its clients run on.

use std::{
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::runtime::{self, Runtime};

use super::work::{SCHEMA, TIDY};
use crate::support::{postgres::PostgresServer, process::eventually};

/// What a server in service has, other than those of the tests: a commit that waits for the disk is part of the knee.
/// No vacuum of its own in the middle of a round.
const SETTINGS: [(&str, &str); 7] = [
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    ("shared_buffers", "128MB"),
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum", "off"),
];

/// Who runs where.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// The server on one core and the clients on another, so that neither takes what the other needs.
    Apart,
    /// Wherever the system puts them.
    Anywhere,
}

pub(super) struct Site {
    pub(super) server: PostgresServer,
    pub(super) runtime: Runtime,
    server_core: Option<usize>,
}

impl Site {
    pub(super) fn start(placement: Placement, max_connections: u32) -> Result<Self> {
        let max_connections = max_connections.to_string();
        let settings: Vec<_> =
            SETTINGS.into_iter().chain([("max_connections", max_connections.as_str())]).collect();
        let cores = match placement {
            Placement::Apart => Some(two_cores()?),
            Placement::Anywhere => None,
        };
        let workers = if cores.is_some() { 1 } else { 2 };
        let (server_core, client_core) = cores.unzip();
        let server = on_core(server_core, || PostgresServer::start_with(&settings))?;
        // Its threads stay where they are started.
        let runtime = on_core(client_core, || {
            runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()
        })??;
        let site = Self { server, runtime, server_core };
        site.sql(SCHEMA)?;
        site.tidy()?;
        Ok(site)
    }

    pub(super) fn url(&self) -> String {
        self.server.url()
    }

    pub(super) fn sql(&self, sql: &str) -> Result<String> {
        self.server.psql(sql).map_err(anyhow::Error::msg)
    }

    /// Waits until those that were here before have gone, and takes away what they left.
    pub(super) fn tidy(&self) -> Result<()> {
        let others = "select count(*) from pg_stat_activity \
            where backend_type = 'client backend' and pid <> pg_backend_pid()";
        let has_gone = || self.server.psql(others).is_ok_and(|count| count == "0");
        ensure!(eventually(has_gone), "connections are open that nobody has");
        for statement in TIDY {
            self.sql(statement)?;
        }
        Ok(())
    }

    /// Has so many others want the server's core, for as long as what is returned is there.
    pub(super) fn crowd(&self, others: u32) -> Result<Crowd> {
        let mut crowd = Crowd::default();
        on_core(self.server_core, || {
            for _ in 0..others {
                crowd.0.push(Command::new("setsid").args(["sh", "-c", "while :; do :; done"]).spawn()?);
            }
            anyhow::Ok(())
        })??;
        Ok(crowd)
    }

    /// The server ends without a word to anybody, and is started again. Returns when it answers.
    pub(super) fn restart(&mut self) -> Result<()> {
        on_core(self.server_core, || self.server.restart())
    }
}

/// Others at the server's core, who have a lot to do until this is dropped: processes with a session each, as the
/// server's are, since Linux shares a processor out by sessions first.
#[derive(Default)]
pub(super) struct Crowd(Vec<Child>);

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // If it is gone by itself, so much the better.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The first and the last core that this process may use.
fn two_cores() -> Result<(usize, usize)> {
    let allowed = sched_getaffinity(None)?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let first = cores.next().context("no core")?;
    Ok((first, cores.next_back().context("a core for the server and one for the clients: here is one")?))
}

/// Does something on one core. What it starts stays there.
fn on_core<T>(core: Option<usize>, work: impl FnOnce() -> T) -> Result<T> {
    let Some(core) = core else { return Ok(work()) };
    let before = sched_getaffinity(None)?;
    let mut only = CpuSet::new();
    only.set(core);
    sched_setaffinity(None, &only)?;
    let done = work();
    sched_setaffinity(None, &before)?;
    Ok(done)
}

/// How long callers wait for a connection, in every pool.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
