//! The room in which answers arrive.
//!
//! Values leave it as slices, which whoever asked copies on a thread of its own: who takes memory on one thread and gives
//! it back on another has allocators wait for each other, and with a copy by the [driver](super::driver) that was a third
//! of what a read took on two threads. So there are several pieces of room in turn, and one of which no slice is left is
//! used anew.

use bytes::BytesMut;

use super::wire;

/// How large a piece is.
const PIECE: usize = 128 * 1024;
/// Less room than this is not worth a call of the system.
const LEAST: usize = 16 * 1024;
/// The most room that is made at once for a value that is announced.
const MOST: usize = 1024 * 1024;
/// So many pieces are kept for later, if there were ever as many in use.
const KEPT: usize = 3;

/// What arrived and is still to be looked at, and the room for more.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    pub(super) bytes: BytesMut,
    /// Empty pieces, of which slices may be in use.
    used: Vec<BytesMut>,
}

impl Incoming {
    /// Makes room for what is announced, and for some in any case. Returns how much there is.
    pub(super) fn make_room(&mut self) -> usize {
        let wanted = wire::missing(&self.bytes).clamp(LEAST, MOST);
        if !self.bytes.try_reclaim(wanted) {
            if self.bytes.len() + wanted > PIECE {
                self.bytes.reserve(wanted);
            } else {
                self.begin_anew();
            }
        }
        self.bytes.capacity() - self.bytes.len()
    }

    /// Gives back what is kept for later.
    pub(super) fn rest(&mut self) {
        self.used = Vec::new();
    }

    fn begin_anew(&mut self) {
        let free = self.used.iter_mut().position(|piece| piece.try_reclaim(PIECE));
        let mut piece =
            free.map_or_else(|| BytesMut::with_capacity(PIECE), |free| self.used.swap_remove(free));
        piece.extend_from_slice(&self.bytes);
        let mut before = std::mem::replace(&mut self.bytes, piece);
        before.clear();
        if self.used.len() < KEPT {
            self.used.push(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value of so many bytes arrives, and leaves.
    fn pass(incoming: &mut Incoming, length: usize) -> bytes::Bytes {
        assert!(incoming.make_room() >= length);
        incoming.bytes.resize(length, b'x');
        incoming.bytes.split_to(length).freeze()
    }

    #[test]
    fn room_is_used_anew_once_nothing_of_it_is_in_use() {
        let mut incoming = Incoming::default();
        let mut places = std::collections::HashSet::new();
        let mut held = std::collections::VecDeque::new();
        for _ in 0..1_000 {
            let value = pass(&mut incoming, 10_000);
            places.insert(value.as_ptr() as usize / PIECE);
            held.push_back(value);
            held.truncate(20); // of two pieces at most
            if held.len() == 20 {
                held.pop_front();
            }
            assert!(held.iter().all(|value| value.iter().all(|byte| *byte == b'x')));
            assert!(incoming.used.len() <= KEPT);
        }
        // A piece may lie across the boundary of two such places.
        assert!(places.len() <= 2 * 3, "{} places", places.len());
    }

    #[test]
    fn who_keeps_a_slice_keeps_what_is_in_it() {
        let mut incoming = Incoming::default();
        let mut held = Vec::new();
        for value in 0..200_u8 {
            incoming.make_room();
            incoming.bytes.extend_from_slice(&[value; 9_000]);
            held.push(incoming.bytes.split_to(9_000).freeze());
        }
        assert!(held.iter().zip(0..).all(|(slice, value)| slice.iter().all(|byte| *byte == value)));
        assert!(incoming.used.len() <= KEPT);
        incoming.rest();
        assert_eq!(incoming.used.capacity(), 0);
    }

    #[test]
    fn half_a_value_comes_along() {
        let mut incoming = Incoming::default();
        incoming.make_room();
        incoming.bytes.extend_from_slice(&[b'a'; PIECE - LEAST]);
        let slice = incoming.bytes.split_to(PIECE - LEAST - 1_000).freeze();
        incoming.bytes.extend_from_slice(b"b");
        assert!(incoming.make_room() >= LEAST);
        assert_eq!(incoming.bytes, [&[b'a'; 1_000][..], b"b"].concat());
        drop(slice);
    }

    #[test]
    fn announced_value_finds_room_and_no_more_than_it_may() {
        let mut incoming = Incoming::default();
        incoming.make_room();
        incoming.bytes.extend_from_slice(b"$500000000\r\n");
        let room = incoming.make_room();
        assert!((MOST..2 * MOST).contains(&room), "{room}");
        incoming.bytes.clear();
        incoming.bytes.extend_from_slice(b"$200000\r\n");
        assert!(incoming.make_room() >= 200_000);
    }
}
