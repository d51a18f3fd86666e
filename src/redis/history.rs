//! Which history of its data a server is in, and what that makes of nonces.
//!
//! A server that is started again from a snapshot or a log, and a replica that takes over, may lack the last writes.
//! Then what was removed lies there again, with the fence that it had and under the stamps that it carries, and nothing
//! of what lies there tells. But every such turn begins a new *history* of the data, for which Redis draws an ID,
//! `master_replid`. So no fence and no stamp is shown as it is written: it is [veiled](History::veil) by the ID of the
//! history. In another history all of them are other ones, and whatever was stored, remembered, loaded or announced in
//! the one before agrees with none of them: all of it is a miss. In the same history everybody sees the same.
//!
//! That costs nothing by the call. A new connection asks before anything else, since a server that died took its
//! connections along; and one that lives asks again in front of the next call once a [second](AGAIN) is over, since a
//! proxy may lead to another server by then, and a primary may have become a replica and the primary again. The question
//! is a script with one of our names, so that whoever passes it on passes it on to where our names are.
//!
//! Why not the ID of the server's process, `run_id`: a primary that was isolated, follows its successor and takes over
//! from it again is the same process, with other data. That Redis draws a new ID on two more occasions, when the first
//! replica comes (or a program that copies the data as one) and an hour after the last one went, costs the cache what it
//! holds, once.

use std::time::Duration;

use super::{
    fault::Fault,
    wire::{Commands, Refusal, Token},
};

/// How long a connection believes what it was told.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

const QUESTION: &[u8] = b"
local info = redis.pcall('INFO', 'replication')
if type(info) == 'table' then return '' end
return info
";
/// Digits of the ID that are made use of: of 40.
const DIGITS: usize = 32;
/// The first byte tells the kind of a string, and stays.
const VEILED: u128 = u128::MAX >> 8;

/// A history of a server's data, by what it does to nonces. To one that is not known it does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct History(u128);

impl History {
    /// The command that asks for it, as far as names are concerned that begin with this.
    pub(super) fn question(tag: &str) -> Commands {
        let mut question = Commands::default();
        question.add(&[b"EVAL", QUESTION, b"1", format!("{tag}history").as_bytes()]);
        question
    }

    /// The command that asks whether the server is the primary, whatever the names. Of all that there is: not every
    /// server takes more than one section, and it matters whether it is of a cluster.
    pub(super) fn question_of_role() -> Commands {
        let mut question = Commands::default();
        question.add(&[b"INFO"]);
        question
    }

    /// What the answer says; `None` if nothing. A server that is the primary no longer, or not yet, is refused: what it
    /// has may be of another history in a moment.
    pub(super) fn of(answer: &Token) -> Result<Option<Self>, Fault> {
        let info = match answer {
            Token::Bytes(info) => String::from_utf8_lossy(info),
            Token::Refusal(refusal) if matches!(refusal.code(), "MOVED" | "READONLY") => {
                return Err(Fault::Refused(refusal.clone()));
            }
            _ => return Ok(None),
        };
        let field = |name| info.lines().find_map(|line| line.strip_prefix(name));
        // Where that is told, it is asked for by one who only publishes, whom a replica in a cluster serves as well.
        if field("role:") == Some("slave") && field("cluster_enabled:") != Some("1") {
            return Err(Fault::Refused(Refusal::new(b"READONLY it is a replica")));
        }
        let digits = field("master_replid:").and_then(|id| id.get(..DIGITS));
        let id = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
        Ok(id.map(|id| Self(id & VEILED)))
    }

    /// A nonce as it is shown, of what is written; and the other way round.
    pub(super) fn veil(self, nonce: [u8; 16]) -> [u8; 16] {
        (u128::from_be_bytes(nonce) ^ self.0).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn of(info: &'static str) -> Option<History> {
        History::of(&Token::Bytes(Bytes::from_static(info.as_bytes()))).unwrap()
    }

    #[test]
    fn history_is_that_of_the_primary_and_what_is_veiled_by_it_can_be_read() {
        let info = "# Replication\r\nrole:master\r\nmaster_replid:ff0123456789abcdeffedcba9876543210aaaaaa\r\n\
                    master_replid2:0000000000000000000000000000000000000000\r\n";
        let history = of(info).unwrap();
        let nonce = fastrand::u128(..).to_be_bytes();
        let shown = history.veil(nonce);
        assert_eq!(history.veil(shown), nonce);
        assert_eq!(shown[0], nonce[0], "its kind");
        assert!(shown[..8] != nonce[..8] && shown[8..] != nonce[8..], "either half of a stamp");
        assert_eq!(History::default().veil(nonce), nonce);
    }

    #[test]
    fn answer_that_tells_nothing_is_no_history() {
        for info in
            ["", "role:master\r\n", "master_replid:\r\n", "master_replid:0123", "role:master\r\n\u{fffd}"]
        {
            assert_eq!(of(info), None, "{info}");
        }
        let no_id = "master_replid:xx0123456789abcdeffedcba9876543210aaaaaa";
        assert_eq!(of(no_id), None);
        for refusal in ["ASK 1 host:1", "NOPERM", "BUSY"] {
            assert_eq!(History::of(&Token::Refusal(Refusal::new(refusal.as_bytes()))).unwrap(), None);
        }
    }

    #[test]
    fn replica_and_node_without_our_names_are_refused() {
        let replica = Token::Bytes(Bytes::from_static(b"role:slave\r\nmaster_replid:ff\r\n"));
        for (answer, code) in [
            (replica, "READONLY"),
            (Token::Refusal(Refusal::new(b"READONLY")), "READONLY"),
            (Token::Refusal(Refusal::new(b"MOVED 1 host:1")), "MOVED"),
        ] {
            let fault = History::of(&answer).unwrap_err();
            assert!(matches!(fault, Fault::Refused(refusal) if refusal.code() == code));
        }
    }
}
