//! What the benches share.
#![allow(dead_code, reason = "each bench includes it, and not all of them have something to contend for")]

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use criterion::Criterion;

/// Measures while another thread does `work` again and again.
pub(crate) fn beside(work: impl Fn() + Sync, measure: impl FnOnce()) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                work();
            }
        });
        measure();
        done.store(true, Ordering::Relaxed);
    });
}

/// Runs benches as the command line says.
pub(crate) fn run(benches: &[fn(&mut Criterion)]) {
    let mut criterion = Criterion::default().configure_from_args();
    for bench in benches {
        bench(&mut criterion);
    }
    criterion.final_summary();
}
