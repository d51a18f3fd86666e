//! The pool: against bb8, over which it is built, and deadpool.
//!
//! `-- pool [<part> ...] [--quick]`, where a part is one of the following, and all are run unless some are named.
//!
//! | part | what | about, in minutes | `--quick` |
//! |---|---|---|---|
//! | `overhead` | taking and returning a connection that costs nothing | 0.3 | 0.1 |
//! | `fairness` | a polite caller among greedy ones | 0.3 | 0.1 |
//! | `prepared` | one row by its key, with the statement prepared | 0.5 | 0.1 |
//! | `same_size` | what a call costs with as many connections on every side | 4 | 0.6 |
//! | `same_size_unpinned` | the same with server and clients wherever the system puts them | 4 | 0.6 |
//! | `p1` | the knee: does it find the best size, and how soon | 40 | 2.5 |
//! | `p1_unpinned` | the same with server and clients wherever the system puts them | 40 | 2.5 |
//! | `p2` | 50 callers at once after silence, and then 500 | 10 | 0.5 |
//! | `p2_silence` | how many connections are left eleven minutes later, and a burst then | 14 | 0.3 |
//! | `p3` | a slow server, backends killed, the server restarted, callers that go away | 4 | 1 |
//! | `p4` | four processes' worth of pools at one server that has too few connections for all | 7 | 1.7 |
//!
//! `p1.select`, `p1.tpcb` and `p1.reports` are the three workloads of `p1`, and those of `p1_unpinned` and of both
//! `same_size` are called alike, but for `reports`.
//!
//! What `--quick` prints says that it all runs, and no more.
//!
//! From `prepared` on there is a PostgreSQL of its own, which keeps data safe as one in service does. The pools are as
//! their documentation recommends where speed counts: statements prepared once for each connection, no ping of a
//! connection that was used a moment ago, 30 s for a caller to wait.
//!
//! Its data are where temporary files are. On a machine whose disk is at times ten times slower, as a shared one may be,
//! `tpcb` measures that: `TMPDIR=/dev/shm` puts them into memory.

mod disturbance;
mod fairness;
mod knee;
mod load;
mod nothing;
mod overhead;
mod peers;
mod prepared;
mod same_size;
mod shared;
mod site;
mod spike;
mod work;

use anyhow::{Result, bail};
use site::Placement;
use work::Workload;

use crate::parts::chosen;

/// How much time there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effort {
    Full,
    Quick,
}

impl Effort {
    /// One thing or the other.
    fn pick<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

type Part = fn(Effort) -> Result<()>;

const PARTS: [(&str, Part); 17] = [
    ("overhead", overhead::run),
    ("fairness", fairness::run),
    ("prepared", prepared::run),
    ("same_size.select", |effort| same_size::run(effort, Placement::Apart, Workload::Select)),
    ("same_size.tpcb", |effort| same_size::run(effort, Placement::Apart, Workload::TpcB)),
    ("same_size_unpinned.select", |effort| same_size::run(effort, Placement::Anywhere, Workload::Select)),
    ("same_size_unpinned.tpcb", |effort| same_size::run(effort, Placement::Anywhere, Workload::TpcB)),
    ("p1.select", |effort| knee::run(effort, Placement::Apart, Workload::Select)),
    ("p1.tpcb", |effort| knee::run(effort, Placement::Apart, Workload::TpcB)),
    ("p1.reports", |effort| knee::run(effort, Placement::Apart, Workload::Reports)),
    ("p1_unpinned.select", |effort| knee::run(effort, Placement::Anywhere, Workload::Select)),
    ("p1_unpinned.tpcb", |effort| knee::run(effort, Placement::Anywhere, Workload::TpcB)),
    ("p1_unpinned.reports", |effort| knee::run(effort, Placement::Anywhere, Workload::Reports)),
    ("p2", spike::run),
    ("p2_silence", spike::run_silence),
    ("p3", disturbance::run),
    ("p4", shared::run),
];

/// Runs the parts that are named.
pub fn run(how: &[String]) -> Result<()> {
    let (flags, names): (Vec<&str>, Vec<&str>) =
        how.iter().map(String::as_str).partition(|word| word.starts_with("--"));
    let effort = match flags[..] {
        [] => Effort::Full,
        ["--quick"] => Effort::Quick,
        _ => bail!("which of the flags? --quick, not {flags:?}"),
    };
    for run in chosen(&PARTS, &names)? {
        run(effort)?;
    }
    Ok(())
}
