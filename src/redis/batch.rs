//! Reads of one tick, as one question.
//!
//! ```text
//! reads   a: entry 1, epoch     b: entry 2, epoch     c: entry 1, tag, epoch
//! asked   TIME   MGET entry 1, epoch, entry 2, tag
//! ```
//!
//! Of many names there are several `MGET`, [`AT_ONCE`] each: the server answers a command when it has found all of it,
//! and so the two sides would only ever work in turn.
//!
//! Every name once, in the order in which they are first wanted. So reads are answered in the order in which they came,
//! and each of them as soon as the last value that it wants is there: its caller is at work, and may have asked anew,
//! while the rest of the answer still arrives. The time is asked for first. What is left of a life is counted from
//! before the question, so that the time between the two commands shortens it, and never lengthens it.

use std::{
    collections::{HashMap, VecDeque},
    ops::Deref,
};

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::{
    fault::Fault,
    history::History,
    wire::{self, Commands, Malformed, Token},
};

/// How many names one command has.
const AT_ONCE: usize = 64;
/// How many names a read usually has: an entry and the stamp of its cache.
const USUAL: usize = 2;

/// The names that a read wants, each as a part of a command.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    ends: SmallVec<[usize; USUAL]>,
}

impl Names {
    pub(super) fn with_capacity(names: usize) -> Self {
        Self { bytes: Vec::with_capacity(96 * names), ends: SmallVec::with_capacity(names) }
    }

    /// Adds a name, given in pieces.
    pub(super) fn add(&mut self, pieces: &[&str]) {
        wire::joined(&mut self.bytes, pieces);
        self.ends.push(self.bytes.len());
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut from = 0;
        self.ends.iter().map(move |end| &self.bytes[std::mem::replace(&mut from, *end)..*end])
    }
}

/// A value. What is as short as a stamp is copied: many reads want the same, and two threads that count who has it
/// take longer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Short([u8; SHORT]),
    Other(Bytes),
}

/// How long that is.
const SHORT: usize = 16;

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        <[u8; SHORT]>::try_from(&*bytes).map_or(Self::Other(bytes), Self::Short)
    }
}

impl From<Value> for Bytes {
    fn from(value: Value) -> Self {
        match value {
            Value::Short(bytes) => Self::copy_from_slice(&bytes),
            Value::Other(bytes) => bytes,
        }
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => bytes,
            Self::Other(bytes) => bytes,
        }
    }
}

/// What a read found, and before that what it wants.
///
/// The caller makes it and the caller drops it: what is taken on one thread and given back on another has allocators wait
/// for each other.
#[derive(Debug, Default)]
pub(super) struct Values {
    /// The server's time, in milliseconds, rounded up.
    pub(super) time: u64,
    /// What the values are of.
    pub(super) history: History,
    /// In the order of the names.
    pub(super) values: SmallVec<[Option<Value>; USUAL]>,
    names: Names,
}

impl Values {
    /// Whether there is nothing for one of the names from this one on.
    pub(super) fn lacks(&self, from: usize) -> bool {
        self.values.iter().skip(from).any(Option::is_none)
    }
}

pub(super) type Waiter<T> = oneshot::Sender<Result<T, Fault>>;

/// A caller's read.
#[derive(Debug)]
pub(super) struct Read {
    found: Box<Values>,
    /// To be run before; what they answer is of no interest.
    pub(super) before: Commands,
    pub(super) waiter: Waiter<Box<Values>>,
}

impl Read {
    pub(super) fn new(names: Names, before: Commands, waiter: Waiter<Box<Values>>) -> Self {
        let values = SmallVec::with_capacity(names.len());
        Self { found: Box::new(Values { names, values, ..Values::default() }), before, waiter }
    }

    pub(super) fn names(&self) -> &Names {
        &self.found.names
    }
}

/// Reads on their way.
#[derive(Debug)]
pub(super) struct Batch {
    /// What the connection was told last before the answer.
    pub(super) history: History,
    stage: Stage,
    time: u64,
    /// How many names were asked for.
    names: usize,
    values: Vec<Option<Value>>,
    /// How many reads still want the value.
    wanted: Vec<u32>,
    /// Where each name of each read is among the values, and how many of those were handed out.
    places: Vec<usize>,
    handed_out: usize,
    waiting: VecDeque<Waiting>,
    /// Why nobody will be answered.
    fault: Option<Fault>,
}

/// What is to come next.
#[derive(Debug)]
enum Stage {
    Time,
    Seconds,
    Microseconds { seconds: u64 },
    Head,
    Values { missing: usize },
}

#[derive(Debug)]
struct Waiting {
    found: Box<Values>,
    /// How many values have to be there.
    needs: usize,
    waiter: Waiter<Box<Values>>,
}

impl Batch {
    /// One question for all of these reads, written to the end of `bytes`.
    pub(super) fn ask(reads: Vec<Read>, history: History, bytes: &mut Vec<u8>) -> Self {
        let names: usize = reads.iter().map(|read| read.names().len()).sum();
        let mut known: HashMap<&[u8], usize, foldhash::fast::RandomState> =
            HashMap::with_capacity_and_hasher(names, foldhash::fast::RandomState::default());
        let mut distinct: Vec<&[u8]> = Vec::with_capacity(names);
        let mut wanted = Vec::with_capacity(names);
        let mut places = Vec::with_capacity(names);
        let mut needs = Vec::with_capacity(reads.len());
        // The last name of the read before and its place: the stamp of a cache, and mostly of the same one.
        let mut stamp = (&[][..], 0);
        for read in &reads {
            let mut last = 0;
            let before = stamp;
            for name in read.names().iter() {
                let place = if name == before.0 {
                    before.1
                } else {
                    *known.entry(name).or_insert_with(|| {
                        distinct.push(name);
                        wanted.push(0);
                        distinct.len() - 1
                    })
                };
                wanted[place] += 1;
                places.push(place);
                last = last.max(place + 1);
                stamp = (name, place);
            }
            needs.push(last);
        }
        bytes.extend_from_slice(b"*1\r\n$4\r\nTIME\r\n");
        for names in distinct.chunks(AT_ONCE) {
            wire::head(bytes, 1 + names.len());
            bytes.extend_from_slice(b"$4\r\nMGET\r\n");
            for name in names {
                bytes.extend_from_slice(name);
            }
        }
        let names = distinct.len();
        let waiting = reads.into_iter().zip(needs);
        let waiting =
            waiting.map(|(read, needs)| Waiting { found: read.found, needs, waiter: read.waiter }).collect();
        let values = Vec::with_capacity(names);
        let stage = Stage::Time;
        let handed_out = 0;
        Self { history, stage, time: 0, names, values, wanted, places, handed_out, waiting, fault: None }
    }

    /// Takes a token of the answer, and tells whether it was the last one.
    pub(super) fn take(&mut self, token: Token) -> Result<bool, Malformed> {
        match (&self.stage, token) {
            (Stage::Time, Token::Array(2)) => self.stage = Stage::Seconds,
            (Stage::Time, Token::Refusal(refusal)) => {
                self.fault = Some(Fault::Refused(refusal));
                self.stage = Stage::Head;
                self.answer(); // who wants nothing
            }
            (Stage::Seconds, Token::Bytes(digits)) => {
                self.stage = Stage::Microseconds { seconds: wire::unsigned(&digits).ok_or(Malformed)? };
            }
            (Stage::Microseconds { seconds }, Token::Bytes(digits)) => {
                let rest = wire::unsigned(&digits).ok_or(Malformed)?.div_ceil(1_000);
                self.time = seconds.saturating_mul(1_000).saturating_add(rest);
                self.stage = Stage::Head;
                self.answer(); // who wants nothing
            }
            (Stage::Head, Token::Array(names)) if names == self.asked_next() => {
                self.stage = Stage::Values { missing: names };
            }
            (Stage::Head, Token::Refusal(refusal)) => {
                self.fault = Some(Fault::Refused(refusal));
                self.values.resize(self.values.len() + self.asked_next(), None);
                self.answer();
            }
            (Stage::Values { missing }, token) => {
                self.stage = if *missing == 1 { Stage::Head } else { Stage::Values { missing: missing - 1 } };
                self.values.push(match token {
                    Token::Bytes(bytes) => Some(bytes.into()),
                    // A type that is not ours is nothing as well.
                    Token::Nothing => None,
                    _ => return Err(Malformed),
                });
                self.answer();
            }
            _ => return Err(Malformed),
        }
        Ok(matches!(self.stage, Stage::Head) && self.values.len() == self.names)
    }

    /// How many names the command has whose answer comes next.
    fn asked_next(&self) -> usize {
        AT_ONCE.min(self.names - self.values.len())
    }

    /// How many reads are not answered yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Tells everybody who still waits.
    pub(super) fn fail(&mut self, fault: &Fault) {
        for waiting in self.waiting.drain(..) {
            // Whoever went away needs no answer, here and below.
            let _ = waiting.waiter.send(Err(fault.clone()));
        }
    }

    /// Answers those whose values are all there.
    fn answer(&mut self) {
        while self.waiting.front().is_some_and(|waiting| waiting.needs <= self.values.len()) {
            let Some(Waiting { mut found, waiter, .. }) = self.waiting.pop_front() else { return };
            let (values, wanted) = (&mut self.values, &mut self.wanted);
            let from = self.handed_out;
            self.handed_out += found.names.len();
            (found.time, found.history) = (self.time, self.history);
            found.values.extend(self.places[from..self.handed_out].iter().map(|&place| {
                wanted[place] -= 1;
                if wanted[place] == 0 { values[place].take() } else { values[place].clone() }
            }));
            let _ = waiter.send(self.fault.clone().map_or(Ok(found), Err));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::wire::Refusal;

    type Answer = oneshot::Receiver<Result<Box<Values>, Fault>>;

    fn read(wanted: &[&str]) -> (Read, Answer) {
        let mut names = Names::default();
        wanted.iter().for_each(|name| names.add(&[name]));
        let (waiter, answer) = oneshot::channel();
        (Read::new(names, Commands::default(), waiter), answer)
    }

    fn ask(wanted: &[&[&str]]) -> (Batch, String, Vec<Answer>) {
        let (reads, answers) = wanted.iter().map(|names| read(names)).unzip();
        let mut bytes = Vec::new();
        let batch = Batch::ask(reads, History::default(), &mut bytes);
        (batch, String::from_utf8(bytes).unwrap().replace("\r\n", " "), answers)
    }

    fn bytes(text: &'static str) -> Token {
        Token::Bytes(Bytes::from_static(text.as_bytes()))
    }

    fn value(bytes: &'static [u8]) -> Value {
        Bytes::from_static(bytes).into()
    }

    fn begin(batch: &mut Batch, names: usize) {
        for token in [Token::Array(2), bytes("1700000000"), bytes("000001"), Token::Array(names)] {
            assert_eq!(batch.take(token), Ok(false));
        }
    }

    fn values(answer: &mut Answer) -> Option<Vec<Option<Value>>> {
        let values = answer.try_recv().ok()?.unwrap();
        assert_eq!(values.time, 1_700_000_000_001, "rounded up");
        Some(values.values.into_vec())
    }

    #[test]
    fn every_name_is_asked_for_once() {
        let (_, question, _) = ask(&[&["e1", "s"], &["e2", "s"], &["s", "e1"]]);
        assert_eq!(question, "*1 $4 TIME *4 $4 MGET $2 e1 $1 s $2 e2 ");
    }

    #[test]
    fn read_is_answered_as_soon_as_its_last_value_is_there() {
        let (mut batch, _, mut answers) = ask(&[&["e1", "s"], &["e2", "s"], &["s", "e1"]]);
        begin(&mut batch, 3);
        assert_eq!(batch.take(bytes("one")), Ok(false));
        assert_eq!(values(&mut answers[0]), None);
        assert_eq!(batch.take(bytes("stamp")), Ok(false));
        let (one, stamp) = (Some(value(b"one")), Some(value(b"stamp")));
        assert_eq!(values(&mut answers[0]), Some(vec![one.clone(), stamp.clone()]));
        assert_eq!(values(&mut answers[1]), None);
        assert_eq!(batch.take(Token::Nothing), Ok(true));
        assert_eq!(values(&mut answers[1]), Some(vec![None, stamp.clone()]));
        assert_eq!(values(&mut answers[2]), Some(vec![stamp, one]));
    }

    /// As reads of two caches are, some of which end with what the one before ended with.
    #[test]
    fn value_is_that_of_the_name_whatever_was_asked_for_before() {
        let asked: [&[&str]; 7] =
            [&["a", "s"], &["b", "s"], &["s"], &[], &["s", "a"], &["a", "t", "a"], &["t", "a", "s"]];
        let (mut batch, question, mut answers) = ask(&asked);
        assert_eq!(question, "*1 $4 TIME *5 $4 MGET $1 a $1 s $1 b $1 t ");
        begin(&mut batch, 4);
        let content = |name: &str| format!("{name:0<16}");
        for name in ["a", "s", "b", "t"] {
            batch.take(Token::Bytes(content(name).into())).unwrap();
        }
        for (names, answer) in asked.iter().zip(&mut answers) {
            let found: Vec<_> = values(answer).unwrap().into_iter().flatten().collect();
            let found: Vec<&[u8]> = found.iter().map(|value| &**value).collect();
            let expected: Vec<String> = names.iter().map(|name| content(name)).collect();
            assert_eq!(found, expected.iter().map(String::as_bytes).collect::<Vec<_>>());
        }
    }

    #[test]
    fn many_names_are_asked_for_in_several_commands() {
        let names: Vec<String> = (0..=AT_ONCE).map(|name| name.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (mut batch, question, mut answers) = ask(&[&names, &names[..1]]);
        assert_eq!(question.matches("MGET").count(), 2);
        begin(&mut batch, AT_ONCE);
        for _ in 0..AT_ONCE {
            assert_eq!(batch.take(Token::Nothing), Ok(false));
        }
        assert_eq!(batch.take(Token::Array(1)), Ok(false));
        assert_eq!(batch.take(bytes("last")), Ok(true));
        let expected = [&vec![None; AT_ONCE][..], &[Some(value(b"last"))]].concat();
        assert_eq!(values(&mut answers[0]), Some(expected));
        assert_eq!(values(&mut answers[1]), Some(vec![None]));
    }

    #[test]
    fn caller_that_went_away_costs_the_others_nothing() {
        let (mut batch, _, mut answers) = ask(&[&["e1", "s"], &["e2", "s"]]);
        drop(answers.remove(0));
        begin(&mut batch, 3);
        for text in ["one", "stamp", "two"] {
            batch.take(bytes(text)).unwrap();
        }
        let expected = [b"two".as_slice(), b"stamp"].map(|bytes| Some(value(bytes)));
        assert_eq!(values(&mut answers[0]), Some(expected.to_vec()));
    }

    #[test]
    fn refusal_reaches_everybody() {
        for refused_at in [0, 1] {
            let (mut batch, _, answers) = ask(&[&["a"], &["b"]]);
            let refusal = || Token::Refusal(Refusal::new(b"LOADING"));
            if refused_at == 0 {
                assert_eq!(batch.take(refusal()), Ok(false));
                assert_eq!(batch.take(Token::Array(2)), Ok(false));
                assert_eq!(batch.take(bytes("1")), Ok(false));
                assert_eq!(batch.take(Token::Nothing), Ok(true));
            } else {
                begin(&mut batch, 2);
                batch.stage = Stage::Head;
                assert_eq!(batch.take(refusal()), Ok(true));
            }
            for mut answer in answers {
                assert!(matches!(answer.try_recv(), Ok(Err(Fault::Refused(_)))));
            }
        }
    }

    #[test]
    fn refusal_reaches_who_wants_no_names() {
        let (mut batch, _, mut answers) = ask(&[&[]]);
        assert_eq!(batch.take(Token::Refusal(Refusal::new(b"NOPERM"))), Ok(true));
        assert!(matches!(answers[0].try_recv(), Ok(Err(Fault::Refused(_)))));
    }

    #[test]
    fn answer_of_another_shape_is_malformed() {
        for tokens in [
            vec![Token::Array(2), bytes("1"), bytes("1"), Token::Array(1), Token::Status],
            vec![Token::Status],
            vec![Token::Array(3)],
            vec![Token::Array(2), Token::Nothing],
            vec![Token::Array(2), bytes("x")],
            vec![Token::Array(2), bytes("1"), bytes("1"), Token::Array(2)],
            vec![Token::Array(2), bytes("1"), bytes("1"), Token::Array(1), Token::Array(1)],
        ] {
            let (mut batch, _, _) = ask(&[&["a"]]);
            let taken: Result<Vec<bool>, Malformed> =
                tokens.into_iter().map(|token| batch.take(token)).collect();
            assert_eq!(taken, Err(Malformed));
        }
    }
}
