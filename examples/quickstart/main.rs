// cargo run --release --example quickstart

//! An MCP server before and after: the same workload against a bare `rmcp` server and against the
//! same server wrapped by this crate.
//!
//! The server is a registry of 20,000 MCP servers in an embedded database. Nothing has to be
//! installed or started; with `REDIS_URL` set, the wrapped server keeps a second level of cache
//! there. What is asked is in `workload`, how it is measured and checked in `clients` and `replay`,
//! and what is wrapped, in a few lines, in `wrapped`.

#![expect(clippy::print_stdout, reason = "the report is what it is for")]
#![expect(clippy::disallowed_methods, reason = "its stopwatch is not the clock of the thing it measures")]

mod catalogue;
mod clients;
mod connections;
mod options;
mod registry;
mod replay;
mod report;
mod server;
mod workload;
mod wrapped;

use std::{
    env,
    fmt::{self, Display, Formatter},
    fs,
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::TempDir;
use tokio::{net::TcpListener, signal, task};

use crate::{
    clients::Run,
    options::{HELP, Options},
    registry::{Database, Health},
    report::{Figures, Report},
    server::Registry,
    workload::{RACING, USUAL, WATCHED_SERVERS, Workload},
    wrapped::wrap,
};

/// How many requests race, a second's work.
const RACES: usize = 6_000;

fn main() -> ExitCode {
    let options = match Options::from_arguments() {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(options: &Options) -> Result<ExitCode> {
    let registry = Template::generate(options.seed).await?;
    if let Some(address) = options.serve {
        return serve(&registry, address).await;
    }
    tokio::select! {
        measured = measure(&registry, options) => measured,
        // Ends in order, so that no copies of the registry stay behind.
        interrupted = signal::ctrl_c() => {
            interrupted?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Serves the wrapped server until Ctrl-C.
async fn serve(registry: &Template, address: SocketAddr) -> Result<ExitCode> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen at {address}"))?;
    let url = server::url(listener.local_addr()?);
    let wrapped = wrap(registry.copy("serve")?, redis_url().as_deref()).await?;
    println!("ready: {url} (Ctrl-C stops it)");
    tokio::select! {
        served = server::serve(listener, wrapped) => served?,
        interrupted = signal::ctrl_c() => interrupted?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the workload against both servers and prints the report.
async fn measure(registry: &Template, options: &Options) -> Result<ExitCode> {
    let &Options { requests, clients, seed, .. } = options;
    // Every server begins with a copy of its own, so that none sees the reports sent to another.
    let bare = registry.copy("bare")?;
    let watched = bare.database().most_downloaded(WATCHED_SERVERS).await?;
    let mut faults = check(registry, &watched, clients, seed).await?;

    let workload = Arc::new(Workload::new(&USUAL, requests, clients, seed, &watched));
    let bare = {
        let server = server::start(bare).await?;
        clients::run(&server.url, &workload, &bar("bare")).await?
    };
    let (wrapped, hit_rate) = {
        let handler = wrap(registry.copy("wrapped")?, redis_url().as_deref()).await?;
        let server = server::start(handler.clone()).await?;
        let run = clients::run(&server.url, &workload, &bar("wrapped")).await?;
        (run, handler.answers().stats().hit_rate())
    };
    faults.count(&bare, &wrapped);

    let report = Report {
        bare: Figures::new(&bare, None),
        wrapped: Figures::new(&wrapped, hit_rate),
        identical_answers: faults == Faults::default(),
    };
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{requests} requests of {clients} clients, seed {seed}\n\n{report}");
    }
    if report.identical_answers {
        Ok(ExitCode::SUCCESS)
    } else {
        eprintln!("error: {faults}");
        Ok(ExitCode::FAILURE)
    }
}

/// Compares the servers where caches go wrong, apart from what is measured.
async fn check(
    registry: &Template,
    watched: &[(String, Health)],
    clients: usize,
    seed: u64,
) -> Result<Faults> {
    let bare = server::start(registry.copy("check-bare")?).await?;
    let wrapped = wrap(registry.copy("check-wrapped")?, redis_url().as_deref()).await?;
    let wrapped = server::start(wrapped).await?;
    let mut faults = Faults::default();

    // As few servers as clients, so that every look may meet a report.
    let few = &watched[..clients.min(watched.len())];
    let races = Arc::new(Workload::new(&RACING, RACES, clients, seed, few));
    faults.count(
        &clients::run(&bare.url, &races, &bar("races")).await?,
        &clients::run(&wrapped.url, &races, &bar("races")).await?,
    );
    faults.replay = replay::compare(&bare.url, &wrapped.url, watched, seed, &bar("replay")).await?;
    Ok(faults)
}

/// In what the answers of the wrapped server differ from those of the bare one.
#[derive(Default, PartialEq)]
struct Faults {
    /// The first difference when one message is sent at a time.
    replay: Option<String>,
    /// How many answers to clients differ.
    answers: usize,
    /// How often each server showed a health that was not so.
    wrong_health: [usize; 2],
}

impl Faults {
    fn count(&mut self, bare: &Run, wrapped: &Run) {
        self.answers += wrapped.differences(bare);
        self.wrong_health[0] += bare.wrong_health;
        self.wrong_health[1] += wrapped.wrong_health;
    }
}

impl Display for Faults {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [bare, wrapped] = self.wrong_health;
        write!(
            f,
            "{} answers differ; wrong health was shown {bare} times by the bare server, {wrapped} \
             times by the wrapped one",
            self.answers,
        )?;
        match &self.replay {
            Some(difference) => write!(f, "; one message at a time, these differ: {difference}"),
            None => Ok(()),
        }
    }
}

/// A freshly written registry, of which each server gets a copy.
struct Template {
    folder: TempDir,
}

impl Template {
    async fn generate(seed: u64) -> Result<Self> {
        let folder = TempDir::new()?;
        let path = folder.path().join("registry");
        let progress = ProgressBar::new_spinner().with_message("writing the registry");
        progress.enable_steady_tick(Duration::from_millis(100));
        task::spawn_blocking(move || Database::generate(&path, seed)).await??;
        progress.finish_and_clear();
        Ok(Self { folder })
    }

    fn copy(&self, name: &str) -> Result<Registry> {
        let path = self.folder.path().join(name);
        fs::copy(self.folder.path().join("registry"), &path)?;
        Ok(Registry::new(Database::open(&path)))
    }
}

fn bar(stage: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(stage);
    // Hidden where nobody watches: indicatif draws on a terminal only.
    match ProgressStyle::with_template("{msg:8} {bar:40} {human_pos} of {human_len}, {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn redis_url() -> Option<String> {
    env::var("REDIS_URL").ok().filter(|url| !url.is_empty())
}
