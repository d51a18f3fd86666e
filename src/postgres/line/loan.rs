//! A cancellation strikes whatever runs when it arrives: it has to be of the one who has the connection now.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

/// Who has a connection, by number, and what he sent after his queries.
#[derive(Debug, Default)]
pub(super) struct Loan {
    number: AtomicU64,
    /// Cancellations under way.
    sending: AtomicU32,
    /// One of them may arrive late.
    is_uncertain: AtomicBool,
}

/// A cancellation under way. Dropped before it is [over](Self::over), it may arrive at any time.
pub(super) struct Sending {
    loan: Arc<Loan>,
    is_over: bool,
}

impl Loan {
    pub(super) fn number(&self) -> u64 {
        self.number.load(Ordering::SeqCst)
    }

    /// Begins to send a cancellation, unless the loan of this number has ended.
    pub(super) fn send(self: &Arc<Self>, number: u64) -> Option<Sending> {
        // Before the look at the number: who ends the loan looks at the two the other way round, so one sees the other.
        self.sending.fetch_add(1, Ordering::SeqCst);
        let mut sending = Sending { loan: Arc::clone(self), is_over: false };
        if self.number() == number {
            return Some(sending);
        }
        sending.is_over = true;
        None
    }

    /// Whoever had the connection has it no longer. Returns whether a cancellation of his may still strike.
    pub(super) fn end(&self) -> bool {
        self.number.fetch_add(1, Ordering::SeqCst);
        self.sending.load(Ordering::SeqCst) > 0 || self.is_uncertain.load(Ordering::SeqCst)
    }
}

impl Sending {
    /// The server has dealt with it, if that is certain.
    pub(super) fn over(mut self, is_certain: bool) {
        self.is_over = is_certain;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.is_over {
            self.loan.is_uncertain.store(true, Ordering::SeqCst);
        }
        self.loan.sending.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancellation_of_a_loan_that_has_ended_is_not_sent_and_one_under_way_is_told_of() {
        let loan = Arc::new(Loan::default());
        let first = loan.number();
        assert!(!loan.end());
        assert!(loan.send(first).is_none());
        assert!(!loan.end(), "it was not sent");
        let sending = loan.send(loan.number()).unwrap();
        assert!(loan.end());
        sending.over(true);
        assert!(!loan.end());
        drop(loan.send(loan.number()));
        assert!(loan.end() && loan.end(), "it may arrive at any time");
    }
}
