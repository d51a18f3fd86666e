//! An exporter of one test, which sees what is registered while it [runs](Recorder::run).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use metrics::{Counter, Gauge, Histogram, HistogramFn, KeyName, Metadata, SharedString, Unit};

/// Records of one owner, whose label comes first; labels after it are told from each other.
#[derive(Clone)]
pub struct Recorder {
    owner: (&'static str, &'static str),
    metrics: Arc<Mutex<BTreeMap<String, Metric>>>,
}

/// Its kind, and its value; of a histogram how often something was recorded.
type Metric = (&'static str, Arc<AtomicU64>);

struct Count(Arc<AtomicU64>);

impl HistogramFn for Count {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Recorder {
    /// For metrics with this label.
    pub fn of(label: &'static str, name: &'static str) -> Self {
        Self { owner: (label, name), metrics: Arc::default() }
    }

    fn register(&self, key: &metrics::Key, kind: &'static str) -> Arc<AtomicU64> {
        let mut labels = key.labels().map(|label| (label.key(), label.value()));
        assert_eq!(labels.next(), Some(self.owner), "{}", key.name());
        let further: String = labels.map(|(label, value)| format!(" {label}={value}")).collect();
        let mut metrics = self.metrics.lock().unwrap();
        let (known, value) =
            metrics.entry(key.name().to_owned() + &further).or_insert((kind, Arc::default()));
        assert_eq!(*known, kind, "{}", key.name());
        Arc::clone(value)
    }

    /// Names and kinds, with the labels after the first.
    pub fn names(&self) -> BTreeMap<String, &'static str> {
        self.metrics.lock().unwrap().iter().map(|(name, (kind, _))| (name.clone(), *kind)).collect()
    }

    /// What was counted, or how often something was recorded.
    pub fn count(&self, name: &str) -> u64 {
        let metrics = self.metrics.lock().unwrap();
        let (_, value) = metrics.get(name).unwrap_or_else(|| panic!("no {name} among {:?}", metrics.keys()));
        value.load(Ordering::SeqCst)
    }

    /// Where a gauge stands.
    pub fn gauge(&self, name: &str) -> f64 {
        f64::from_bits(self.count(name))
    }

    /// Runs a test on a runtime of its own, in paused time.
    pub fn run_paused(&self, test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        metrics::with_local_recorder(self, || runtime.block_on(test));
    }

    /// Runs a test on a runtime of its own.
    pub fn run(&self, test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        metrics::with_local_recorder(self, || runtime.block_on(test));
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &metrics::Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.register(key, "counter"))
    }

    fn register_gauge(&self, key: &metrics::Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.register(key, "gauge"))
    }

    fn register_histogram(&self, key: &metrics::Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Count(self.register(key, "histogram"))))
    }
}
