//! What an operator reads of this crate.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tracing::{
    Dispatch, Event, Level, Metadata,
    field::{Field, Visit},
    span,
    subscriber::{DefaultGuard, NoSubscriber},
};

/// The lines that this thread logs while it is there. A test with a runtime of one thread hears all of its tasks.
pub struct Log {
    lines: Lines,
    _hearing: DefaultGuard,
    /// With one subscriber alone, whether a line is wanted is asked of the thread that comes to it first.
    _second: Dispatch,
}

impl Log {
    pub fn hear() -> Self {
        let (lines, second) = (Lines::default(), Dispatch::new(NoSubscriber::default()));
        Self { _hearing: tracing::subscriber::set_default(lines.clone()), lines, _second: second }
    }

    /// Those of a level and above, in their order, without their fields.
    pub fn at_least(&self, level: Level) -> Vec<String> {
        self.lines().iter().filter(|line| line.level <= level).map(|line| line.message.clone()).collect()
    }

    /// What is in the field of this name, of all lines that have one.
    pub fn fields(&self, name: &str) -> Vec<String> {
        let lines = self.lines();
        let fields = lines.iter().flat_map(|line| &line.fields).filter(|field| field.0 == name);
        fields.map(|field| field.1.clone()).collect()
    }

    /// How many of them, of any level, say this.
    pub fn count(&self, words: &str) -> usize {
        self.at_least(Level::TRACE).iter().filter(|line| line.contains(words)).count()
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.lines.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<Line>>>);

struct Line {
    level: Level,
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("mcp_perf")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line { level: *event.metadata().level(), message: String::new(), fields: Vec::new() };
        event.record(&mut line);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push((name, format!("{value:?}"))),
        }
    }
}
