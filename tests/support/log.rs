//! What an operator reads of this crate.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
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
        let lines = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|line| line.0 <= level).map(|line| line.1.clone()).collect()
    }

    /// How many of them, of any level, say this.
    pub fn count(&self, words: &str) -> usize {
        self.at_least(Level::TRACE).iter().filter(|line| line.contains(words)).count()
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(Level, String)>>>);

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
        let mut message = Message(String::new());
        event.record(&mut message);
        let line = (*event.metadata().level(), message.0);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
