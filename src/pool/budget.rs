//! One server's connections, shared by many processes: the arithmetic, pure.
//!
//! Who wants PostgreSQL's shared takes [`PostgresBudget`](crate::postgres::PostgresBudget), by which processes lease
//! blocks of a few connections, or [`ObservedShare`](crate::postgres::ObservedShare) (feature `postgres`), and gives it to
//! [`PoolBuilder::allowance`](super::PoolBuilder::allowance). This is for an [`Allowance`](super::Allowance) of one's own.
//!
//! A server allows so many connections in all, and every process that has a pool takes some. That each pool stays below
//! a ceiling of its own keeps the sum below nothing. What one process may have at most is its *share* of a [`Budget`]:
//!
//! | share | is | has to be known |
//! |---|---|---|
//! | [static](Budget::static_share) | the budget divided by the processes that may run at once | configuration |
//! | [observed](Budget::observed_share) | what is fair among those that are there, and some of what nobody uses | who is connected to the server |
//!
//! The static share needs nothing that could fail, so it is what is left when something has. A share is for
//! [`Sample::ceiling`](super::sizing::Sample::ceiling).
//!
//! If the server refuses a connection all the same (SQLSTATE 53300), the default sizing gives way: every process cuts by the
//! same factor, gives back what it has above that, and comes back by the same steps, which leads to equal shares without
//! anybody knowing of anybody (Chiu and Jain, 1989). That is, every process that asks for a connection meanwhile: one
//! that has what it needs hears of no refusal, and keeps it.

use crate::Error;

/// Of the budget, what borrowers leave for those that have less than is fair: one in so many.
const RESERVE: u32 = 10;
/// How many connections a server's clients may have in all, and among how many processes they are divided.
///
/// ```
/// use mcp_perf::pool::budget::Budget;
///
/// // `max_connections` is 100: three are kept for superusers, ten for migrations and people. There are four replicas,
/// // and one more while they are replaced.
/// let budget = Budget::new(100 - 3 - 10, 5)?;
/// assert_eq!(budget.static_share(), 17);
/// assert_eq!(budget.observed_share(2, 30, 20), 44); // one other process, which has ten
/// # Ok::<(), mcp_perf::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    connections: u32,
    processes: u32,
}

impl Budget {
    /// So many connections for so many processes at most, those counted twice that are replaced by a rolling update.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) if there are no processes or not a connection for each; the
    /// message names the field.
    pub fn new(connections: u32, processes: u32) -> Result<Self, Error> {
        if processes == 0 {
            return Err(Error::configuration("processes", "there is at least one"));
        }
        if connections < processes {
            let problem = format_args!("{connections} are not one for each of {processes} processes");
            return Err(Error::configuration("connections", problem));
        }
        Ok(Self { connections, processes })
    }

    /// Connections that there may be in all.
    #[must_use]
    pub fn connections(self) -> u32 {
        self.connections
    }

    /// What a process may have without knowing anything of the others: the budget divided by all that may run, rounded
    /// down. At least 1.
    #[must_use]
    pub fn static_share(self) -> u32 {
        self.connections / self.processes
    }

    /// What a process may have that sees `processes` at the server, itself included, with `open` connections in all,
    /// `own` of them its own. At least 1.
    ///
    /// Of what is not in use, every process may take its part; so if all of them see the same and take all they may,
    /// the budget holds. Who has more than is fair leaves a tenth of the budget alone, and gives back half of what is
    /// above the fair share as soon as somebody needed that tenth.
    #[must_use]
    pub fn observed_share(self, processes: u32, open: u32, own: u32) -> u32 {
        let processes = processes.max(1);
        let fair = self.connections / processes;
        let unused = self.connections.saturating_sub(open);
        let spare = unused.saturating_sub(self.connections / RESERVE);
        let share = if own < fair {
            own.saturating_add((unused / processes).min(fair - own).max(spare / processes))
        } else if spare > 0 {
            own.saturating_add(spare / processes)
        } else {
            own - (own - fair).div_ceil(2)
        };
        share.clamp(1, self.connections)
    }
}

/// How equal shares are: 1 if all are the same, 1 ÷ n if one of n has everything (R. Jain, 1984). Of nothing it is 1.
///
/// ```
/// use mcp_perf::pool::budget::jain_index;
///
/// assert_eq!(jain_index(&[10, 10, 10, 10]), 1.0);
/// assert_eq!(jain_index(&[40, 0, 0, 0]), 0.25);
/// ```
#[must_use]
pub fn jain_index(shares: &[u32]) -> f64 {
    let sum: f64 = shares.iter().copied().map(f64::from).sum();
    let squares: f64 = shares.iter().map(|share| f64::from(*share).powi(2)).sum();
    if squares > 0.0 { sum * sum / (shares.len() as f64 * squares) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn impossible_budgets_name_the_field() {
        assert!(Budget::new(4, 0).unwrap_err().to_string().starts_with("processes: "));
        assert!(Budget::new(4, 5).unwrap_err().to_string().starts_with("connections: "));
        assert_eq!(Budget::new(5, 5).unwrap().static_share(), 1);
    }

    #[test]
    fn borrower_gives_back_what_others_need_and_all_come_to_equal_shares() {
        let budget = Budget::new(40, 8).unwrap();
        let mut own = [37, 1, 1, 1];
        for _ in 0..10 {
            let open = own.iter().sum();
            own = own.map(|own| budget.observed_share(4, open, own));
            assert!(own.iter().sum::<u32>() <= 40, "{own:?}");
        }
        assert!(jain_index(&own) > 0.99, "{own:?}");
    }

    #[test]
    fn what_the_others_do_not_want_can_be_borrowed_down_to_the_reserve() {
        let budget = Budget::new(40, 8).unwrap();
        let mut own = 1;
        for _ in 0..40 {
            own = budget.observed_share(4, own + 3, own);
        }
        assert!((30..=33).contains(&own), "{own}");
    }

    proptest! {
        #[test]
        fn budget_holds_if_all_see_the_same_and_take_all_they_may(
            connections in 8..500_u32,
            wanted in proptest::collection::vec(1..100_u32, 1..8),
        ) {
            let count = u32::try_from(wanted.len()).unwrap();
            let budget = Budget::new(connections, count).unwrap();
            let mut own = vec![1; wanted.len()];
            for _ in 0..100 {
                let open = own.iter().sum();
                for (own, wanted) in own.iter_mut().zip(&wanted) {
                    *own = budget.observed_share(count, open, *own).min(*wanted);
                }
                prop_assert!(own.iter().sum::<u32>() <= connections, "{own:?} of {connections}");
            }
            let fair = connections / count;
            for (own, wanted) in own.iter().zip(&wanted) {
                prop_assert!(*own + 2 >= fair.min(*wanted), "{own} of {fair}, {wanted} wanted");
            }
        }

        #[test]
        fn every_share_is_within_the_budget(
            (connections, processes) in (1..=u32::MAX, 1..=u32::MAX),
            (seen, open, own) in any::<(u32, u32, u32)>(),
        ) {
            prop_assume!(processes <= connections);
            let budget = Budget::new(connections, processes).unwrap();
            let shares = [budget.static_share(), budget.observed_share(seen, open, own)];
            prop_assert!(shares.iter().all(|share| *share <= connections), "{shares:?}");
            prop_assert!((0.0..=1.000_001).contains(&jain_index(&shares)));
        }
    }
}
