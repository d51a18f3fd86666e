//! The protocol of Redis on the bytes: commands into them, tokens out of them.
//!
//! Version 2, which every server and every proxy speaks, and of it what this crate asks for: an answer is one token, or
//! the head of an array and its elements. Why not the driver's own reader: an answer of a thousand values becomes a
//! tree there, is copied twice, and reaches nobody before its last byte; here each value is copied once, and is on its
//! way to its caller while the next one still arrives.

use std::{fmt, sync::Arc};

use bytes::{Buf, Bytes, BytesMut};

#[cfg(feature = "test-util")]
use super::incoming::Incoming;

/// From this size on a value is apart from the others: on the connection for large ones, and in memory of its own.
pub(super) const LARGE: usize = 64 * 1024;
/// What is shorter is not worth a slice: it takes as long to count who has it as to copy it.
const SHORT: usize = 64;
/// The longest line of an answer. Redis says what it has to say in less.
const LONGEST_LINE: usize = 64 * 1024;
/// The longest value, as Redis itself limits it.
const LONGEST_VALUE: usize = 512 * 1024 * 1024;
/// An error is shown up to here.
const LONGEST_REFUSAL: usize = 256;

/// Commands, one after the other as they are sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Commands {
    pub(super) bytes: Vec<u8>,
    pub(super) count: usize,
}

impl Commands {
    /// Adds a command of these parts.
    pub(super) fn add(&mut self, parts: &[&[u8]]) {
        head(&mut self.bytes, parts.len());
        for part in parts {
            bulk(&mut self.bytes, part);
        }
        self.count += 1;
    }

    /// The same, with a name as its second part.
    pub(super) fn add_named(&mut self, command: &[u8], name: &[&str], rest: &[&[u8]]) {
        head(&mut self.bytes, 2 + rest.len());
        bulk(&mut self.bytes, command);
        joined(&mut self.bytes, name);
        for part in rest {
            bulk(&mut self.bytes, part);
        }
        self.count += 1;
    }
}

/// The head of a command of so many parts.
pub(super) fn head(bytes: &mut Vec<u8>, parts: usize) {
    bytes.push(b'*');
    number(bytes, parts);
}

/// One part of a command.
pub(super) fn bulk(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.push(b'$');
    number(bytes, part.len());
    bytes.extend_from_slice(part);
    bytes.extend_from_slice(b"\r\n");
}

/// One part of a command, given in pieces.
pub(super) fn joined(bytes: &mut Vec<u8>, pieces: &[&str]) {
    bytes.push(b'$');
    number(bytes, pieces.iter().map(|piece| piece.len()).sum());
    for piece in pieces {
        bytes.extend_from_slice(piece.as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
}

/// A number and the end of its line.
fn number(bytes: &mut Vec<u8>, mut number: usize) {
    let mut digits = [0; 20];
    let mut from = digits.len();
    loop {
        from -= 1;
        digits[from] = b"0123456789"[number % 10];
        number /= 10;
        if number == 0 {
            break;
        }
    }
    bytes.extend_from_slice(&digits[from..]);
    bytes.extend_from_slice(b"\r\n");
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// So many elements follow.
    Array(usize),
    Bytes(Bytes),
    Integer(i64),
    Nothing,
    Refusal(Refusal),
    Status,
}

/// An error that the server answered with.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Refusal(Arc<str>);

impl Refusal {
    pub(super) fn new(line: &[u8]) -> Self {
        let line = String::from_utf8_lossy(&line[..line.len().min(LONGEST_REFUSAL)]);
        // Before version 7 a script that asks for what is not to be had is told so with its own name and line in front.
        let of_script = line.strip_prefix("@user_script: ").and_then(|rest| rest.split_once(": "));
        let said = of_script.map_or(&*line, |(_, said)| said.strip_prefix('-').unwrap_or(said));
        Self(said.replace(char::is_control, " ").into())
    }

    /// Its kind: the first word, if that is one of capital letters.
    pub(super) fn code(&self) -> &str {
        let word = self.0.split(' ').next().unwrap_or_default();
        if word.bytes().all(|byte| byte.is_ascii_uppercase()) { word } else { "" }
    }

    /// All of it. It may name what was asked for.
    pub(super) fn line(&self) -> &str {
        &self.0
    }
}

/// Whether a refusal of a `PING` says that the server is there and knows us: who may not ask is known to it, and one that
/// takes no writes refuses that, too.
pub(super) fn is_as_good_as_pong(code: &str) -> bool {
    matches!(code, "NOPERM" | "MISCONF")
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Refusal").field(&self.code()).finish()
    }
}

/// The bytes are not of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// How far into a buffer an answer of any shape goes, as it arrives: every byte is looked at once.
#[derive(Debug)]
pub(super) struct Extent {
    /// What is known to be of it.
    length: usize,
    /// How many tokens of it are not there yet.
    missing: usize,
}

impl Default for Extent {
    fn default() -> Self {
        Self { length: 0, missing: 1 }
    }
}

impl Extent {
    /// The length of the answer at the front of the buffer; `None` while it is not whole. Between two calls the buffer
    /// only grows.
    pub(super) fn of(&mut self, buffer: &[u8]) -> Result<Option<usize>, Malformed> {
        while self.missing > 0 {
            let rest = buffer.get(self.length..).unwrap_or_default();
            let Some(end) = line_end(rest)? else { return Ok(None) };
            let (kind, line) = rest[..end].split_first().ok_or(Malformed)?;
            let mut length = end + 2;
            match kind {
                b'$' => {
                    if let Ok(value) = usize::try_from(signed(line)?) {
                        if value > LONGEST_VALUE {
                            return Err(Malformed);
                        }
                        length += value + 2;
                    }
                }
                b'*' => {
                    let elements = usize::try_from(signed(line)?).unwrap_or(0);
                    self.missing = self.missing.checked_add(elements).ok_or(Malformed)?;
                }
                b':' => {
                    signed(line)?;
                }
                b'+' | b'-' => {}
                _ => return Err(Malformed),
            }
            let Some(token) = rest.get(..length) else { return Ok(None) };
            if !token.ends_with(b"\r\n") {
                return Err(Malformed);
            }
            self.length += length;
            self.missing -= 1;
        }
        Ok(Some(self.length))
    }
}

/// Takes the next token off the buffer; `None` while it is not whole.
pub(super) fn next(buffer: &mut BytesMut) -> Result<Option<Token>, Malformed> {
    token(buffer, false)
}

/// The same, for those who are soon done with a value: it may be a slice of the buffer, which stays what it is.
pub(super) fn next_in_place(buffer: &mut BytesMut) -> Result<Option<Token>, Malformed> {
    token(buffer, true)
}

fn token(buffer: &mut BytesMut, in_place: bool) -> Result<Option<Token>, Malformed> {
    let Some(end) = line_end(buffer)? else { return Ok(None) };
    let (kind, line) = buffer[..end].split_first().ok_or(Malformed)?;
    let token = match kind {
        b'$' => return value(buffer, end, in_place),
        b'+' => Token::Status,
        b'-' => Token::Refusal(Refusal::new(line)),
        b':' => Token::Integer(signed(line)?),
        b'*' => signed(line)?.try_into().map_or(Token::Nothing, Token::Array),
        _ => return Err(Malformed),
    };
    buffer.advance(end + 2);
    Ok(Some(token))
}

/// How many bytes are missing for the value whose head is at the front of the buffer, as far as can be told.
pub(super) fn missing(buffer: &[u8]) -> usize {
    let Ok(Some(end)) = line_end(buffer) else { return 0 };
    match buffer.split_first() {
        Some((b'$', _)) => {
            let length = signed(&buffer[1..end]).ok().and_then(|length| usize::try_from(length).ok());
            length.map_or(0, |length| (end + 4).saturating_add(length).saturating_sub(buffer.len()))
        }
        _ => 0,
    }
}

/// The tokens of an answer that arrives in these pieces, as they would be shown, and what is left of it; `None` if it is
/// not of the protocol. A door for fuzzing, and no part of what this crate promises.
#[cfg(feature = "test-util")]
#[doc(hidden)]
#[must_use]
pub fn tokens(pieces: &[&[u8]]) -> Option<(Vec<String>, Vec<u8>)> {
    let (mut buffer, mut tokens) = (BytesMut::new(), Vec::new());
    let (mut incoming, mut in_place) = (Incoming::default(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        let read = take_all(|| next(&mut buffer), &mut tokens);
        // What more there is room made for, before it has arrived.
        incoming.make_room();
        incoming.bytes.extend_from_slice(piece);
        let read_in_place = take_all(|| incoming.next(), &mut in_place);
        assert_eq!((&read, &tokens), (&read_in_place, &in_place));
        read.ok()?;
    }
    assert_eq!(buffer, incoming.bytes);
    Some((tokens.iter().map(|token| format!("{token:?}")).collect(), buffer.to_vec()))
}

#[cfg(feature = "test-util")]
fn take_all(
    mut next: impl FnMut() -> Result<Option<Token>, Malformed>,
    tokens: &mut Vec<Token>,
) -> Result<(), Malformed> {
    while let Some(token) = next()? {
        tokens.push(token);
    }
    Ok(())
}

fn value(buffer: &mut BytesMut, end: usize, in_place: bool) -> Result<Option<Token>, Malformed> {
    let Ok(length) = usize::try_from(signed(&buffer[1..end])?) else {
        buffer.advance(end + 2);
        return Ok(Some(Token::Nothing));
    };
    if length > LONGEST_VALUE {
        return Err(Malformed);
    }
    let (from, to) = (end + 2, end + 2 + length);
    let Some(after) = buffer.get(to..to + 2) else { return Ok(None) };
    if after != b"\r\n" {
        return Err(Malformed);
    }
    // A slice keeps all of the buffer alive, however many neighbours are long gone. So what is smaller is copied of one that
    // may be kept: the value, or what came after it.
    let behind = buffer.len() - to;
    let bytes = if in_place && (SHORT..LARGE).contains(&length) {
        buffer.advance(from);
        let bytes = buffer.split_to(length).freeze();
        buffer.advance(2);
        bytes
    } else if length < LARGE || behind > length || in_place {
        let bytes = Bytes::copy_from_slice(&buffer[from..to]);
        buffer.advance(to + 2);
        bytes
    } else {
        buffer.advance(from);
        let bytes = buffer.split_to(length).freeze();
        *buffer = BytesMut::from(&buffer[2..]);
        bytes
    };
    Ok(Some(Token::Bytes(bytes)))
}

/// Where the first line ends.
fn line_end(buffer: &[u8]) -> Result<Option<usize>, Malformed> {
    match buffer.iter().take(LONGEST_LINE).position(|byte| *byte == b'\r') {
        Some(end) => match buffer.get(end + 1) {
            Some(b'\n') => Ok(Some(end)),
            Some(_) => Err(Malformed),
            None => Ok(None),
        },
        None if buffer.len() >= LONGEST_LINE => Err(Malformed),
        None => Ok(None),
    }
}

fn signed(digits: &[u8]) -> Result<i64, Malformed> {
    let (is_negative, digits) = match digits.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, digits),
    };
    if digits.is_empty() {
        return Err(Malformed);
    }
    let number = unsigned(digits).and_then(|number| i64::try_from(number).ok()).ok_or(Malformed)?;
    Ok(if is_negative { -number } else { number })
}

/// The number in these digits, if they are digits.
pub(super) fn unsigned(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(bytes: &[u8]) -> Result<Vec<Token>, Malformed> {
        let mut buffer = BytesMut::from(bytes);
        let mut tokens = Vec::new();
        while let Some(token) = next(&mut buffer)? {
            tokens.push(token);
        }
        Ok(tokens)
    }

    #[test]
    fn command_is_what_the_protocol_says() {
        let mut commands = Commands::default();
        commands.add(&[b"GET", b"a\r\nb"]);
        commands.add_named(b"SET", &["{p}:", "name"], &[b""]);
        assert_eq!(
            (commands.bytes.as_slice(), commands.count),
            (&b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n*3\r\n$3\r\nSET\r\n$8\r\n{p}:name\r\n$0\r\n\r\n"[..], 2)
        );
    }

    #[test]
    fn answer_of_every_kind_is_read_however_it_is_cut() {
        let answer = b"+OK\r\n:-7\r\n*2\r\n$3\r\na\r\n\r\n$-1\r\n*-1\r\n-MOVED 1 host:2\r\n$0\r\n\r\n";
        let expected = [
            Token::Status,
            Token::Integer(-7),
            Token::Array(2),
            Token::Bytes(Bytes::from_static(b"a\r\n")),
            Token::Nothing,
            Token::Nothing,
            Token::Refusal(Refusal::new(b"MOVED 1 host:2")),
            Token::Bytes(Bytes::new()),
        ];
        assert_eq!(tokens(answer).unwrap(), expected);
        for cut in 0..answer.len() {
            let mut buffer = BytesMut::from(&answer[..cut]);
            let mut read = Vec::new();
            while let Some(token) = next(&mut buffer).unwrap() {
                read.push(token);
            }
            buffer.extend_from_slice(&answer[cut..]);
            while let Some(token) = next(&mut buffer).unwrap() {
                read.push(token);
            }
            assert_eq!(read, expected, "cut at {cut}");
        }
    }

    #[test]
    fn extent_of_an_answer_is_found_however_it_is_cut() {
        let answers = [
            &b"+OK\r\n"[..],
            b"$-1\r\n",
            b"*0\r\n",
            b"*-1\r\n",
            b"*2\r\n$3\r\na\r\n\r\n*2\r\n:1\r\n-ERR no\r\n",
        ];
        for answer in answers {
            for cut in 0..answer.len() {
                let mut extent = Extent::default();
                assert_eq!(extent.of(&answer[..cut]), Ok(None), "cut at {cut}");
                let next = [answer, b"+NEXT\r\n"].concat();
                assert_eq!(extent.of(&next), Ok(Some(answer.len())), "cut at {cut}");
            }
        }
        for wrong in [&b"!3\r\n"[..], b"*1\r\n%1\r\n", b"*9999999999999999999\r\n", b"$536870913\r\n"] {
            assert_eq!(Extent::default().of(wrong), Err(Malformed));
        }
    }

    #[test]
    fn what_is_not_of_the_protocol_is_said_to_be_so() {
        for bytes in [
            &b"HTTP/1.1 400\r\n"[..],
            b"\r\n",
            b"$x\r\n",
            b"$\r\n",
            b"$3\r\nabcd\r\n",
            b"$536870913\r\n",
            b":99999999999999999999\r\n",
            b"+O\rK",
            &[b'+'; LONGEST_LINE],
        ] {
            assert_eq!(tokens(bytes), Err(Malformed), "{:?}", &bytes[..bytes.len().min(16)]);
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..50_000 {
            let length = random.usize(..24);
            let bytes: Vec<u8> =
                (0..length).map(|_| *random.choice(b"$*+-:0123456789\r\na").unwrap_or(&0)).collect();
            let _ = tokens(&bytes);
            if let Ok(Some(length)) = Extent::default().of(&bytes) {
                assert!(tokens(&bytes[..length]).is_ok() && length <= bytes.len());
            }
            let _ = missing(&bytes);
        }
    }

    #[test]
    fn large_value_is_not_copied_and_a_small_one_keeps_nothing_else_alive() {
        let mut buffer = BytesMut::from(format!("${LARGE}\r\n{}\r\n", "x".repeat(LARGE)).as_bytes());
        let place = buffer[8..].as_ptr();
        assert_eq!(missing(&buffer[..100]), buffer.len() - 100);
        let Some(Token::Bytes(bytes)) = next(&mut buffer).unwrap() else { panic!("no value") };
        assert_eq!((bytes.len(), bytes.as_ptr()), (LARGE, place));
        // Nor does a large one another, nor the buffer any of them.
        let large = format!("${LARGE}\r\n{}\r\n", "x".repeat(LARGE));
        let mut buffer = BytesMut::from([&large, &large, "$1\r"].concat().as_bytes());
        let tokens = [next(&mut buffer), next(&mut buffer)];
        assert!(buffer == b"$1\r"[..] && buffer.capacity() < LARGE);
        for token in tokens {
            let Some(Token::Bytes(bytes)) = token.unwrap() else { panic!("no value") };
            assert!(bytes.len() == LARGE && bytes.try_into_mut().is_ok());
        }
        let mut buffer = BytesMut::from(&b"$1\r\nx\r\n"[..]);
        let place = buffer[4..].as_ptr();
        let Some(Token::Bytes(bytes)) = next(&mut buffer).unwrap() else { panic!("no value") };
        assert_ne!(bytes.as_ptr(), place);
    }

    #[test]
    fn refusal_shows_its_kind_and_nothing_that_it_quotes() {
        let refusal = Refusal::new(b"NOPERM User alice has no access to 'secret'");
        assert_eq!(refusal.code(), "NOPERM");
        assert_eq!(format!("{refusal:?}"), "Refusal(\"NOPERM\")");
        assert_eq!(Refusal::new(b"it's secret").code(), "");
        let of_script =
            Refusal::new(b"@user_script: 12: -READONLY You can't write against a read only replica.");
        assert_eq!(of_script.code(), "READONLY");
        assert_eq!(Refusal::new(b"@user_script: 12").code(), "");
    }
}
