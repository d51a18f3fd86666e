//! The load: MCP clients that send their requests one after the other and check every answer.
//!
//! # What is measured
//!
//! Each client is `rmcp`'s own over streamable HTTP, with one kept connection, and sends its next
//! request when the answer to the last has come. A latency is what the caller of the client
//! waited. All requests count from the first one on, while every cache is still empty. Clients and
//! server share one process and its cores, so the clients' work is in every figure, on both sides.
//!
//! # What is checked
//!
//! Answers to searches and to reports are the same whatever the order of events; only their
//! digests are kept, to be compared between the servers. The health in the answer to a look at a
//! server depends on which reports came before, and the clients race. But each report has its
//! number, and one client alone sends those on a server, so an answer that is right at *some*
//! moment between its request and its arrival can be told from one that is not:
//!
//! - its number is at least that of every report that was answered, and of every health that was
//!   seen, before the look began;
//! - its number is at most that of the last report that had been sent when the answer came;
//! - its status and its latency are those that were reported under that number.
//!
//! This is linearizability of a register with a single writer and distinct values: a server that
//! reads what is written passes under any schedule, and one stale answer fails. The rest of such an
//! answer is compared like all others. When all is quiet, every server that reports were sent on
//! is looked at once more, and these answers are compared in full.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use rmcp::{
    RoleClient, ServiceExt,
    model::{CallToolRequestParams, CallToolResult},
    service::RunningService,
    transport::{StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig},
};
use serde_json::json;
use tokio::sync::Barrier;

use crate::{
    registry::Health,
    workload::{Kind, Request, Workload, call},
};

/// What a run of the workload took and what was answered.
pub(crate) struct Run {
    /// From the first request to the last answer.
    pub(crate) wall: Duration,
    /// Of the whole process in that time.
    pub(crate) cpu: Duration,
    /// Of every request, shortest first.
    pub(crate) latencies: Vec<Duration>,
    /// How many requests brought no answer, or the answer that something is wrong.
    pub(crate) errors: usize,
    /// How many looks at a server showed a health that it did not have.
    pub(crate) wrong_health: usize,
    /// What of each answer does not depend on who came first.
    answers: Vec<u64>,
    /// The answers to a last look at each server that reports were sent on.
    settled: Vec<CallToolResult>,
}

impl Run {
    /// Counts the answers that differ from those of another run of the same workload.
    pub(crate) fn differences(&self, other: &Self) -> usize {
        let answers = self.answers.iter().zip(&other.answers).filter(|(one, other)| one != other);
        let settled = self.settled.iter().zip(&other.settled).filter(|(one, other)| one != other);
        answers.count() + settled.count()
    }
}

/// Sends the whole workload to the server at `url`, moving `progress` on with each answer.
pub(crate) async fn run(url: &str, workload: &Arc<Workload>, progress: &ProgressBar) -> Result<Run> {
    let watch: Arc<Vec<Watched>> = Arc::new(workload.servers.iter().map(|_| Watched::default()).collect());
    let start = Arc::new(Barrier::new(workload.clients.len() + 1));
    let mut tasks = Vec::with_capacity(workload.clients.len());
    for place in 0..workload.clients.len() {
        let client = connect(url).await?;
        let (workload, watch) = (Arc::clone(workload), Arc::clone(&watch));
        let (start, progress) = (Arc::clone(&start), progress.clone());
        tasks.push(tokio::spawn(async move {
            start.wait().await;
            let mut log = Log::default();
            for request in &workload.clients[place] {
                log.send(&client, request, &workload, &watch).await;
                progress.inc(1);
            }
            (client, log)
        }));
    }
    progress.set_length(workload.clients.iter().map(Vec::len).sum::<usize>() as u64);
    let (started, cpu_before) = (Instant::now(), cpu_time());
    start.wait().await;
    let mut finished = Vec::with_capacity(tasks.len());
    for task in tasks {
        finished.push(task.await?);
    }
    let (wall, cpu) = (started.elapsed(), cpu_time().saturating_sub(cpu_before));
    progress.finish();

    let mut log = Log::default();
    for (client, part) in finished {
        client.cancel().await?;
        log.append(part);
    }
    let settled = settle(url, workload, &mut log).await?;
    log.latencies.sort_unstable();
    Ok(Run {
        wall,
        cpu,
        latencies: log.latencies,
        errors: log.errors,
        wrong_health: log.wrong_health,
        answers: log.answers,
        settled,
    })
}

/// Connects a client that keeps its connection.
///
/// `rmcp`'s default client opens a new one for each request, which costs both sides more than many
/// a request. The legacy handshake is the default and the cheaper protocol.
async fn connect(url: &str) -> Result<RunningService<RoleClient, ()>> {
    let http = reqwest::Client::builder()
        .pool_max_idle_per_host(1)
        // The server is on this machine, whatever proxy the environment names.
        .no_proxy()
        .build()?;
    let transport =
        StreamableHttpClientTransport::with_client(http, StreamableHttpClientTransportConfig::with_uri(url));
    ().serve(transport).await.context("cannot connect a client")
}

/// Looks once more at every server that reports were sent on.
async fn settle(url: &str, workload: &Workload, log: &mut Log) -> Result<Vec<CallToolResult>> {
    let client = connect(url).await?;
    let mut answers = Vec::new();
    for server in workload.servers.iter().filter(|server| server.history.len() > 1) {
        let answer = client.call_tool(call("get_server", json!({ "id": server.id }))).await?;
        if take_health(&mut answer.clone()) != server.history.last().copied() {
            log.wrong_health += 1;
        }
        answers.push(answer);
    }
    client.cancel().await?;
    Ok(answers)
}

/// What clients know of the reports on a server, as numbers of reports.
#[derive(Default)]
struct Watched {
    sent: AtomicU32,
    answered: AtomicU32,
    seen: AtomicU32,
}

/// What one client writes down.
#[derive(Default)]
struct Log {
    latencies: Vec<Duration>,
    answers: Vec<u64>,
    errors: usize,
    wrong_health: usize,
}

impl Log {
    async fn send(
        &mut self,
        client: &RunningService<RoleClient, ()>,
        request: &Request,
        workload: &Workload,
        watch: &[Watched],
    ) {
        let params = request.params.clone();
        let answer = match request.kind {
            Kind::Search => self.time(client, params).await,
            Kind::Report { server, number } => {
                watch[server].sent.store(number, SeqCst);
                let answer = self.time(client, params).await;
                if answer.is_some() {
                    watch[server].answered.store(number, SeqCst);
                }
                answer
            }
            Kind::Look { server } => {
                let Watched { sent, answered, seen } = &watch[server];
                let oldest = answered.load(SeqCst).max(seen.load(SeqCst));
                let mut answer = self.time(client, params).await;
                let newest = sent.load(SeqCst);
                if let Some(answer) = &mut answer {
                    match take_health(answer) {
                        Some(health)
                            if (oldest..=newest).contains(&health.reports)
                                && workload.servers[server].history.get(health.reports as usize)
                                    == Some(&health) =>
                        {
                            seen.fetch_max(health.reports, SeqCst);
                        }
                        _ => self.wrong_health += 1,
                    }
                }
                answer
            }
        };
        self.answers.push(answer.as_ref().map_or(0, digest));
    }

    /// Calls a tool; an answer that says that something is wrong counts as none.
    async fn time(
        &mut self,
        client: &RunningService<RoleClient, ()>,
        params: CallToolRequestParams,
    ) -> Option<CallToolResult> {
        let started = Instant::now();
        let answer = client.call_tool(params).await;
        self.latencies.push(started.elapsed());
        let answer = answer.ok().filter(|answer| answer.is_error != Some(true));
        self.errors += usize::from(answer.is_none());
        answer
    }

    fn append(&mut self, mut other: Self) {
        self.latencies.append(&mut other.latencies);
        self.answers.append(&mut other.answers);
        self.errors += other.errors;
        self.wrong_health += other.wrong_health;
    }
}

/// Takes the health out of both forms of the answer to a look at a server, the structured one and
/// the text, which must say the same.
fn take_health(answer: &mut CallToolResult) -> Option<Health> {
    let structured = answer.structured_content.as_mut()?;
    let [content] = answer.content.as_slice() else {
        return None;
    };
    let text = structured.to_string();
    if content.as_text()?.text != text {
        return None;
    }
    answer.content.clear();
    serde_json::from_value(structured.as_object_mut()?.remove("health")?).ok()
}

fn digest(answer: &CallToolResult) -> u64 {
    let mut hasher = DefaultHasher::new();
    // An answer that came as JSON can be written as JSON.
    serde_json::to_vec(answer).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

/// What the process has used of its cores up to now.
#[cfg(unix)]
fn cpu_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Not known here, so shown as nothing.
#[cfg(not(unix))]
fn cpu_time() -> Duration {
    Duration::ZERO
}
