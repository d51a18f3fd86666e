//! What a decision looks like in HTTP: the fields of the IETF draft "RateLimit header fields for HTTP"
//! (draft-ietf-httpapi-ratelimit-headers-10), and `Retry-After` on a refusal.
//!
//! A bucket is described as what it holds in the time that it takes to fill: `q` is the burst, `w` the whole
//! seconds from empty to full.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};

use super::{Decision, Limiter};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

impl Limiter {
    /// Writes what the decision says into the header fields of its answer.
    pub(super) fn describe(&self, decision: &Decision, headers: &mut HeaderMap) {
        let (policy, limit, remaining, after) = match decision {
            Decision::Allow(standing) => {
                (standing.policy, standing.limit, standing.remaining(), Some(standing.reset_after()))
            }
            Decision::Deny(denial) => (denial.policy, denial.limit, denial.remaining(), denial.retry_after()),
        };
        let name = self.policy_name(policy);
        if name.is_empty() {
            return;
        }
        let window = whole_seconds(self.refill(policy));
        insert(headers, RATE_LIMIT_POLICY, format!("\"{name}\";q={limit};w={window}"));
        let wait = after.map(|after| format!(";t={}", whole_seconds(after))).unwrap_or_default();
        insert(headers, RATE_LIMIT, format!("\"{name}\";r={remaining}{wait}"));
        if let Decision::Deny(denial) = decision
            && let Some(after) = denial.retry_after()
        {
            headers.entry(RETRY_AFTER).or_insert(whole_seconds(after).max(1).into());
        }
    }
}

/// Rounded up: whoever comes back after that is not too early.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: String) {
    // Names of policies are printable ASCII without quotes, so this cannot fail.
    if let Ok(value) = HeaderValue::try_from(value) {
        // Beside what another limiter may have written: both fields are lists.
        headers.append(name, value);
    }
}
