//! What the clients ask: one seeded list of requests, replayed against both servers.
//!
//! The mix is that of MCP clients at work: 55 % searches for servers, 25 % looks at one server, 18 %
//! searches for tools, 2 % reports of monitors. Popularity is skewed as on the web (Zipf, exponent
//! 1.1): of 180 distinct searches for servers, 60 distinct searches for tools and the 300 most
//! downloaded servers, the first of each are asked for again and again, the last a few times in a
//! run. Every one of them is asked for a first time within the run, when no cache can know it.
//!
//! Each server is watched by one client, which alone reports its health, as monitors share out
//! their work. So the reports on a server have one order, and the answer to each is known in
//! advance however the clients race. The servers that are read most are reported on most, where a
//! careless cache would go on answering with what was.

use std::collections::HashSet;

use rmcp::model::{CallToolRequestParams, JsonObject};
use serde_json::{Value, json};

use crate::{
    catalogue::Catalogue,
    registry::{Health, Status},
};

/// How many servers the clients look at and report on: the most downloaded ones.
pub(crate) const WATCHED_SERVERS: u32 = 300;
const SEARCHES: usize = 180;
const TOOL_SEARCHES: usize = 60;
const EXPONENT: f64 = 1.1;

/// The requests of a run.
pub(crate) struct Workload {
    /// What each client sends, in order.
    pub(crate) clients: Vec<Vec<Request>>,
    /// The servers that clients look at and report on.
    pub(crate) servers: Vec<Server>,
}

/// A call of a tool.
pub(crate) struct Request {
    pub(crate) params: CallToolRequestParams,
    pub(crate) kind: Kind,
}

/// What the answer to a request depends on.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// On nothing that ever changes.
    Search,
    /// On the health of the server in this place of [`Workload::servers`].
    Look { server: usize },
    /// On how many reports there were before: this is number `number`.
    Report { server: usize, number: u32 },
}

/// A server that clients look at and report on.
pub(crate) struct Server {
    pub(crate) id: String,
    /// Its health before any report, after the first, and so on.
    pub(crate) history: Vec<Health>,
}

/// How many in a hundred requests are of each kind; the others are reports.
pub(crate) struct Mix {
    searches: u8,
    looks: u8,
    tool_searches: u8,
}

/// The mix that is measured.
pub(crate) const USUAL: Mix = Mix { searches: 55, looks: 25, tool_searches: 18 };

/// Looks and reports only, to see whether they get in each other's way.
pub(crate) const RACING: Mix = Mix { searches: 0, looks: 70, tool_searches: 0 };

impl Workload {
    /// Draws `requests` requests of `clients` clients, who are no more than there are `servers`.
    pub(crate) fn new(
        mix: &Mix,
        requests: usize,
        clients: usize,
        seed: u64,
        servers: &[(String, Health)],
    ) -> Self {
        let looks = mix.searches + mix.looks;
        let tool_searches = looks + mix.tool_searches;
        let pools = Pools::new(seed);
        let mut workload = Self {
            clients: Vec::with_capacity(clients),
            servers: servers
                .iter()
                .map(|(id, health)| Server { id: id.clone(), history: vec![*health] })
                .collect(),
        };
        let popularity = Zipf::new(workload.servers.len());
        for client in 0..clients {
            let mut random = fastrand::Rng::with_seed(seed.wrapping_add(1 + client as u64));
            let share = requests / clients + usize::from(client < requests % clients);
            let mut list = Vec::with_capacity(share);
            for _ in 0..share {
                let random = &mut random;
                list.push(match random.u8(..100) {
                    drawn if drawn < mix.searches => {
                        Request::search("search_servers", pools.searches.draw(random))
                    }
                    drawn if drawn < looks => workload.look(popularity.draw(random)),
                    drawn if drawn < tool_searches => {
                        Request::search("find_tools", pools.tool_searches.draw(random))
                    }
                    _ => {
                        // The servers stand in rows as long as there are clients; each client
                        // watches one in every row. The last row may be too short for it.
                        let row = popularity.draw(random) / clients * clients;
                        let watched = Some(row + client).filter(|&it| it < workload.servers.len());
                        workload.report(watched.unwrap_or(client), random)
                    }
                });
            }
            workload.clients.push(list);
        }
        workload
    }

    fn look(&self, server: usize) -> Request {
        Request {
            params: call("get_server", json!({ "id": self.servers[server].id })),
            kind: Kind::Look { server },
        }
    }

    fn report(&mut self, server: usize, random: &mut fastrand::Rng) -> Request {
        let Server { id, history } = &mut self.servers[server];
        let (status, latency_ms) = probe(random);
        let reports = history.last().map_or(0, |last| last.reports) + 1;
        history.push(Health { status, latency_ms, reports });
        Request {
            params: call("report_health", json!({ "id": id, "status": status, "latency_ms": latency_ms })),
            kind: Kind::Report { server, number: reports },
        }
    }
}

impl Request {
    fn search(tool: &'static str, arguments: &Value) -> Self {
        Self { params: call(tool, arguments.clone()), kind: Kind::Search }
    }
}

/// What a monitor may see when it probes a server.
pub(crate) fn probe(random: &mut fastrand::Rng) -> (Status, u32) {
    match random.u8(..20) {
        0 => (Status::Down, 0),
        1..=3 => (Status::Degraded, random.u32(400..5_000)),
        _ => (Status::Healthy, random.u32(5..400)),
    }
}

/// The call of a tool with arguments in the order given.
pub(crate) fn call(tool: &'static str, arguments: Value) -> CallToolRequestParams {
    let arguments = match arguments {
        Value::Object(arguments) => arguments,
        _ => JsonObject::new(),
    };
    CallToolRequestParams::new(tool).with_arguments(arguments)
}

/// The searches that people come up with, the popular ones first.
pub(crate) struct Pools {
    pub(crate) searches: Pool,
    pub(crate) tool_searches: Pool,
}

impl Pools {
    pub(crate) fn new(seed: u64) -> Self {
        // Not the seed of the registry: nobody knows its content when they search it.
        let mut catalogue = Catalogue::new(!seed);
        let mut known = HashSet::new();
        let mut new_query = || loop {
            let query = catalogue.query();
            if known.insert(query.clone()) {
                return query;
            }
        };
        let searches = (0..SEARCHES).map(|_| {
            let (query, _) = new_query();
            json!({ "query": query })
        });
        let searches = Pool::new(searches.collect());
        let tool_searches = (0..TOOL_SEARCHES).map(|place| {
            let (query, category) = new_query();
            // Every third one is for tools of one kind of server.
            match place % 3 {
                0 => json!({ "query": query, "category": category }),
                _ => json!({ "query": query }),
            }
        });
        let tool_searches = Pool::new(tool_searches.collect());
        Self { searches, tool_searches }
    }
}

/// Arguments of calls, of which the first are drawn most often.
pub(crate) struct Pool {
    arguments: Vec<Value>,
    popularity: Zipf,
}

impl Pool {
    fn new(arguments: Vec<Value>) -> Self {
        Self { popularity: Zipf::new(arguments.len()), arguments }
    }

    pub(crate) fn draw(&self, random: &mut fastrand::Rng) -> &Value {
        &self.arguments[self.popularity.draw(random)]
    }
}

/// Draws place `n` (from 0) with a probability in proportion to `1 / (n + 1)^EXPONENT`.
struct Zipf {
    /// The sum of the weights up to each place.
    cumulative: Vec<f64>,
}

impl Zipf {
    #[expect(clippy::cast_precision_loss, reason = "a place in a short list")]
    fn new(places: usize) -> Self {
        let weights = (1..=places).map(|place| (place as f64).powf(-EXPONENT));
        let cumulative = weights.scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Self { cumulative: cumulative.collect() }
    }

    fn draw(&self, random: &mut fastrand::Rng) -> usize {
        let total = self.cumulative.last().copied().unwrap_or_default();
        let drawn = random.f64() * total;
        self.cumulative.partition_point(|&sum| sum <= drawn).min(self.cumulative.len() - 1)
    }
}
