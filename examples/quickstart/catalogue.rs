//! The content of the registry: servers and their tools, written by a seeded generator.
//!
//! A registry is searched by words, so the words decide what a search costs. Each server belongs to
//! one of 24 categories and speaks its language; a few words of every list are common and the rest
//! are rare, as in real text; publishers and products carry made-up names, so that the vocabulary
//! goes on growing with the number of servers. The same seed gives the same registry.

use std::collections::HashSet;

use crate::registry::{Health, Status};

/// How many servers the registry holds.
pub(crate) const SERVERS: u32 = 20_000;
const PUBLISHERS: usize = 1_500;
/// Of the server in first place; the one in place `n` has an `n`th of it.
const MOST_DOWNLOADS: u32 = 9_000_000;

/// One MCP server as its publisher registered it.
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) description: String,
    pub(crate) publisher: String,
    pub(crate) category: &'static str,
    pub(crate) tags: Vec<&'static str>,
    pub(crate) version: String,
    pub(crate) downloads: u32,
    pub(crate) health: Health,
    pub(crate) tools: Vec<Tool>,
}

/// One tool of a server.
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) description: String,
}

/// The generator: a vocabulary and a seeded source of draws from it.
pub(crate) struct Catalogue {
    vocabulary: Vocabulary,
    random: fastrand::Rng,
}

impl Catalogue {
    pub(crate) fn new(seed: u64) -> Self {
        Self { vocabulary: Vocabulary::new(), random: fastrand::Rng::with_seed(seed) }
    }

    /// Writes the servers of the registry, most downloaded first.
    pub(crate) fn entries(mut self) -> impl Iterator<Item = Entry> {
        let publishers: Vec<String> =
            (0..PUBLISHERS).map(|_| self.vocabulary.invented_name(&mut self.random)).collect();
        let mut taken = HashSet::new();
        (1..=SERVERS).map(move |place| {
            let publisher = skewed(&publishers, &mut self.random).to_lowercase();
            let mut entry = self.vocabulary.entry(publisher, &mut self.random);
            while !taken.insert(entry.id.clone()) {
                entry.id.push_str("-plus");
            }
            // The head of a registry is downloaded thousands of times as often as its tail.
            entry.downloads = MOST_DOWNLOADS / place + self.random.u32(..50);
            entry
        })
    }

    /// Writes a query as people type it to find a server or a tool, and says what category it is
    /// about.
    pub(crate) fn query(&mut self) -> (String, &'static str) {
        self.vocabulary.query(&mut self.random)
    }
}

struct Vocabulary {
    categories: Vec<Category>,
    verbs: Words,
    adjectives: Words,
    audiences: Words,
    attributes: Words,
    name_starts: Words,
    name_ends: Words,
}

/// A kind of server and what it works with.
struct Category {
    name: &'static str,
    nouns: Words,
}

impl Vocabulary {
    fn new() -> Self {
        Self {
            categories: CATEGORIES
                .iter()
                .map(|&(name, nouns)| Category { name, nouns: Words::new(nouns) })
                .collect(),
            verbs: Words::new(VERBS),
            adjectives: Words::new(ADJECTIVES),
            audiences: Words::new(AUDIENCES),
            attributes: Words::new(ATTRIBUTES),
            name_starts: Words::new(NAME_STARTS),
            name_ends: Words::new(NAME_ENDS),
        }
    }

    fn category(&self, random: &mut fastrand::Rng) -> &Category {
        &self.categories[random.usize(..self.categories.len())]
    }

    fn entry(&self, publisher: String, random: &mut fastrand::Rng) -> Entry {
        let category = self.category(random);
        let nouns = &category.nouns;
        let (subject, second) = (nouns.draw(random), nouns.draw(random));
        let product = self.invented_name(random);

        let description = format!(
            "{product} gives clients {} access to {subject} and {second}: {} {subject}, {} {} \
             and {} {} without leaving the editor. {} {} for {}, with {} {}.",
            self.adjectives.draw(random),
            self.verbs.draw(random),
            self.verbs.draw(random),
            nouns.draw(random),
            self.verbs.draw(random),
            nouns.draw(random),
            capitalized(self.adjectives.draw(random)),
            nouns.draw(random),
            self.audiences.draw(random),
            self.adjectives.draw(random),
            nouns.draw(random),
        );

        let mut tags = vec![category.name];
        for tag in [subject, second, self.adjectives.draw(random)] {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }

        let wanted = 3 + random.usize(..5) + random.usize(..6);
        let mut tools: Vec<Tool> = Vec::with_capacity(wanted);
        while tools.len() < wanted {
            let tool = self.tool(category, &product, random);
            if tools.iter().all(|other| other.name != tool.name) {
                tools.push(tool);
            }
        }

        Entry {
            id: format!("{publisher}/{}-{subject}", product.to_lowercase()),
            title: format!("{product} {}", capitalized(subject)),
            description,
            publisher,
            category: category.name,
            tags,
            version: format!("{}.{}.{}", random.u8(..4), random.u8(..20), random.u8(..10)),
            downloads: 0,
            health: Health {
                status: match random.u8(..100) {
                    0 => Status::Down,
                    1..=4 => Status::Degraded,
                    _ => Status::Healthy,
                },
                latency_ms: random.u32(5..400),
                reports: 0,
            },
            tools,
        }
    }

    fn tool(&self, category: &Category, product: &str, random: &mut fastrand::Rng) -> Tool {
        let nouns = &category.nouns;
        let (verb, noun) = (self.verbs.draw(random), nouns.draw(random));
        let action = capitalized(verb);
        let description = match random.u8(..3) {
            0 => format!(
                "{action} {noun} of a {product} account, filtered by {} and {}.",
                nouns.draw(random),
                self.attributes.draw(random),
            ),
            1 => format!(
                "{action} {} {noun} for {} and return the {}.",
                self.adjectives.draw(random),
                self.audiences.draw(random),
                self.attributes.draw(random),
            ),
            _ => format!(
                "{action} {noun} together with their {}; needs the {} of the {}.",
                nouns.draw(random),
                self.attributes.draw(random),
                nouns.draw(random),
            ),
        };
        Tool { name: format!("{verb}_{noun}"), description }
    }

    fn query(&self, random: &mut fastrand::Rng) -> (String, &'static str) {
        let category = self.category(random);
        let nouns = &category.nouns;
        let subject = nouns.draw(random);
        // What sets a thing apart is typed as often as what is common, so most words are not skewed.
        let mut words = match random.u8(..4) {
            0 => vec![self.verbs.draw(random), subject],
            1 => vec![self.adjectives.any(random), subject, nouns.any(random)],
            2 => vec![subject, nouns.any(random)],
            _ => vec![self.verbs.draw(random), subject, nouns.any(random)],
        };
        if random.bool() {
            words.push(self.audiences.draw(random));
        }
        words.dedup();
        (words.join(" "), category.name)
    }

    fn invented_name(&self, random: &mut fastrand::Rng) -> String {
        let mut name = String::from(self.name_starts.draw(random));
        if random.bool() {
            name.push_str(self.name_starts.draw(random));
        }
        name.push_str(self.name_ends.draw(random));
        capitalized(&name)
    }
}

/// A list of words, most common first.
struct Words(Vec<&'static str>);

impl Words {
    fn new(words: &'static str) -> Self {
        Self(words.split_whitespace().collect())
    }

    /// Draws the first words most often.
    fn draw(&self, random: &mut fastrand::Rng) -> &'static str {
        skewed::<&str>(&self.0, random)
    }

    /// Draws all words equally often.
    fn any(&self, random: &mut fastrand::Rng) -> &'static str {
        self.0[random.usize(..self.0.len())]
    }
}

/// Draws from a list so that its first items come up most often.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a fraction of a short list's length"
)]
fn skewed<'a, T>(items: &'a [T], random: &mut fastrand::Rng) -> &'a T {
    &items[(random.f64().powi(2) * items.len() as f64) as usize]
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Every category of server and the words of its trade, most common first.
const CATEGORIES: &[(&str, &str)] = &[
    (
        "databases",
        "tables queries schemas postgres rows indexes migrations sqlite views backups replicas
         transactions columns mysql constraints snapshots cursors partitions triggers sequences",
    ),
    (
        "payments",
        "invoices payments customers refunds subscriptions payouts charges balances disputes
         receipts checkouts coupons taxes mandates wallets ledgers fees settlements chargebacks
         quotes",
    ),
    (
        "calendar",
        "events meetings calendars invites reminders attendees rooms availability holidays timezones
         agendas bookings recurrences appointments shifts rosters deadlines conferences webinars
         slots",
    ),
    (
        "mail",
        "messages mailboxes threads attachments drafts labels contacts newsletters signatures
         filters aliases bounces templates recipients unsubscribes spam folders headers digests
         autoreplies",
    ),
    (
        "chat",
        "channels conversations mentions reactions emojis threads members workspaces presence
         huddles pins bots webhooks polls announcements moderation stickers voice bans roles",
    ),
    (
        "source-control",
        "repositories commits issues branches reviews releases workflows diffs merges tags forks
         milestones labels gists blame submodules changelogs contributors hooks rebases",
    ),
    (
        "cloud",
        "instances buckets regions volumes networks functions images gateways subnets firewalls
         quotas budgets certificates zones autoscaling peering archives keypairs spot tenancies",
    ),
    (
        "containers",
        "pods clusters deployments kubernetes namespaces manifests nodes charts services ingresses
         secrets registries rollouts sidecars cronjobs operators layers probes daemonsets taints",
    ),
    (
        "observability",
        "logs metrics alerts traces dashboards incidents spans monitors errors uptime latency
         profiles anomalies runbooks exceptions heartbeats percentiles crashes sampling postmortems",
    ),
    (
        "search",
        "pages results sites crawls keywords snippets sitemaps rankings citations synonyms
         embeddings vectors relevance facets suggestions backlinks domains feeds bookmarks spellings",
    ),
    (
        "documents",
        "documents files pdfs paragraphs spreadsheets slides comments revisions forms signatures
         footnotes bookmarks scans tables outlines watermarks glossaries bibliographies redactions
         margins",
    ),
    (
        "images",
        "images photos thumbnails colors icons faces captions palettes textures albums filters
         sprites watermarks screenshots layers exif vectors gradients masks panoramas",
    ),
    (
        "audio-video",
        "videos transcripts subtitles podcasts playlists clips tracks streams recordings episodes
         chapters speakers codecs lyrics albums broadcasts loudness karaoke samples remixes",
    ),
    (
        "maps",
        "places routes addresses coordinates distances traffic geocodes tiles transit elevations
         boundaries parking landmarks isochrones bicycles ferries trails satellites geofences
         waypoints",
    ),
    (
        "weather",
        "forecasts temperatures storms rainfall winds alerts humidity stations radar tides sunrise
         pollen snow lightning climate hurricanes visibility drought wildfires frost",
    ),
    (
        "finance",
        "stocks prices portfolios trades currencies filings earnings dividends options bonds funds
         candles sentiment analysts commodities hedges valuations screeners volatility derivatives",
    ),
    (
        "commerce",
        "products orders carts catalogs inventory shipments returns discounts variants reviews
         warehouses suppliers wishlists storefronts barcodes bundles marketplaces pickups preorders
         giftcards",
    ),
    (
        "sales",
        "contacts deals leads accounts pipelines opportunities campaigns quotes territories
         forecasts prospects proposals stages commissions renewals playbooks referrals segments
         outreach churn",
    ),
    (
        "projects",
        "tasks projects boards sprints tickets assignees epics estimates backlogs timelines
         dependencies burndowns standups retrospectives roadmaps checklists timesheets swimlanes
         velocity blockers",
    ),
    (
        "identity",
        "users groups tokens sessions roles passwords permissions directories logins policies audits
         consents passkeys tenants federations devices scopes impersonations lockouts entitlements",
    ),
    (
        "security",
        "vulnerabilities scans threats findings advisories malware certificates exploits patches
         signatures sandboxes honeypots fingerprints exposures breaches phishing indicators
         quarantines forensics ransomware",
    ),
    (
        "research",
        "papers authors abstracts citations journals datasets preprints patents conferences
         references grants genomes proteins molecules trials theorems surveys simulations telescopes
         fossils",
    ),
    (
        "home",
        "lights sensors scenes thermostats cameras switches automations locks speakers energy
         doorbells blinds vacuums irrigation batteries chargers solar appliances garages aquariums",
    ),
    (
        "health-care",
        "patients appointments medications diagnoses allergies prescriptions vitals claims
         immunizations referrals symptoms workouts sleep nutrition radiology genetics discharges
         cohorts biopsies rehabilitation",
    ),
];

/// What tools do, most common first.
const VERBS: &str = "
    list get create search update delete query export send import summarize analyze sync validate
    compare schedule convert archive monitor publish merge restore approve assign translate classify
    extract annotate render rename duplicate cancel subscribe inspect forecast deduplicate encrypt
    throttle reconcile anonymize replay benchmark migrate bisect escalate quarantine transcode
    geocode
";

/// How servers describe themselves, most common first.
const ADJECTIVES: &str = "
    secure fast shared recent detailed daily automatic structured incremental encrypted historical
    multilingual collaborative scheduled anonymous offline regional verified recurring versioned
    bulk archived hierarchical streaming idempotent compliant serverless federated probabilistic
    reproducible ephemeral decentralized
";

/// Whom they are for, most common first.
const AUDIENCES: &str = "
    teams developers engineers analysts support operators startups enterprises students marketers
    recruiters accountants researchers freelancers journalists teachers lawyers nurses architects
    farmers museums nonprofits municipalities shipyards
";

/// What tools filter by and return, most common first.
const ATTRIBUTES: &str = "
    status date owner identifier name amount priority region version language visibility checksum
    expiry severity currency fingerprint confidence timezone cardinality provenance
";

/// The two halves of the made-up names of products and publishers.
const NAME_STARTS: &str = "
    ba be bri ca cor da del do el fa fen flo ga gri ha hel in ja jo ka kin la lo lu ma mer mo na nor
    o or pa pel pra qua ra ri sa sil so ta ter tri u va vel wi xe ya zen
";
const NAME_ENDS: &str = "
    bit bridge cast cloud core dash desk do fin flow form gate grid hub kit lane lia line link lo
    loop ly mark mesh mind na nest nio nova pad path pulse ra rex ro scale scope sense ship stack sy
    ta tor trail va verse vo wave wise works
";
