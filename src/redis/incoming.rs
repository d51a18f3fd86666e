//! The room in which answers arrive.
//!
//! Values leave it as slices, which whoever asked copies on a thread of its own: who takes memory on one thread and gives
//! it back on another has allocators wait for each other, and with a copy by the [driver](super::driver) that was a third
//! of what a read took on two threads. So there are several pieces of room in turn, and one of which no slice is left is
//! used anew.
//!
//! A slice keeps its piece, and a caller that is not polled keeps its slice. So once [`MOST`] pieces are kept like that,
//! values are copied here until one of them is free.

use std::mem;

use bytes::BytesMut;

use super::wire::{self, Malformed, Token};

/// How large a piece is.
const PIECE: usize = 128 * 1024;
/// Less room than this is not worth a call of the system.
const LEAST: usize = 16 * 1024;
/// The most room that is made at once for a value that is announced.
const MOST_ROOM: usize = 1024 * 1024;
/// So many pieces of which slices may be in use there are besides the one that answers arrive in.
const MOST: usize = 4;

/// What arrived and is still to be looked at, and the room for more.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    pub(super) bytes: BytesMut,
    /// Whether that is a piece, and not room for something larger or none.
    is_piece: bool,
    /// Pieces of which slices are or were in use.
    used: Vec<BytesMut>,
    /// Whether no more of them may be: nothing is sliced off.
    copies: bool,
}

impl Incoming {
    /// Takes the next token off, if it is whole. A value may be a slice, which is not to be kept.
    pub(super) fn next(&mut self) -> Result<Option<Token>, Malformed> {
        match self.is_piece && !self.copies {
            true => wire::next_in_place(&mut self.bytes),
            false => wire::next(&mut self.bytes),
        }
    }

    /// Makes room for what is announced, and for some in any case. Returns how much there is: never none.
    pub(super) fn make_room(&mut self) -> usize {
        self.copies = self.copies && self.free().is_none();
        let wanted = wire::missing(&self.bytes).clamp(LEAST, MOST_ROOM);
        let whole = self.bytes.len() + wanted;
        if whole > PIECE && !self.is_piece {
            self.bytes.reserve(wanted);
        } else if whole > PIECE {
            self.begin(BytesMut::with_capacity(whole), false);
        } else if !self.is_piece || !self.bytes.try_reclaim(wanted) {
            let free = self.free().map(|free| self.used.swap_remove(free));
            self.begin(free.unwrap_or_else(|| BytesMut::with_capacity(PIECE)), true);
        }
        self.bytes.capacity() - self.bytes.len()
    }

    /// Gives back what is not in use.
    pub(super) fn rest(&mut self) {
        self.used.retain_mut(|piece| !piece.try_reclaim(PIECE));
        self.used.shrink_to_fit();
        if self.bytes.is_empty() && self.bytes.try_reclaim(PIECE) {
            (self.bytes, self.is_piece) = (BytesMut::new(), false);
        }
    }

    /// Where there is a piece of which no slice is in use.
    fn free(&mut self) -> Option<usize> {
        self.used.iter_mut().position(|piece| piece.try_reclaim(PIECE))
    }

    /// Goes on in other room.
    fn begin(&mut self, mut room: BytesMut, is_piece: bool) {
        room.extend_from_slice(&self.bytes);
        let mut before = mem::replace(&mut self.bytes, room);
        if mem::replace(&mut self.is_piece, is_piece) {
            before.clear();
            self.used.push(before);
            self.copies |= self.used.len() >= MOST;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytes::Bytes;

    use super::{super::wire::LARGE, *};

    /// A value of so many bytes like this one arrives, and leaves.
    fn pass(incoming: &mut Incoming, length: usize, like: u8) -> Bytes {
        let answer = [format!("${length}\r\n").as_bytes(), &vec![like; length], b"\r\n"].concat();
        let mut rest = &answer[..];
        loop {
            let room = incoming.make_room();
            assert!(room > 0);
            let (some, later) = rest.split_at(room.min(rest.len()));
            incoming.bytes.extend_from_slice(some);
            rest = later;
            if let Some(token) = incoming.next().unwrap() {
                let Token::Bytes(value) = token else { panic!("{token:?}") };
                assert_eq!((value.len(), rest.len()), (length, 0));
                return value;
            }
        }
    }

    /// How much memory is kept by these slices alone.
    fn kept(slices: impl IntoIterator<Item = Bytes>) -> usize {
        slices.into_iter().map(|slice| slice.try_into_mut().map_or(0, |whole| whole.capacity())).sum()
    }

    fn pieces(incoming: &Incoming) -> usize {
        incoming.used.len() + usize::from(incoming.is_piece)
    }

    #[test]
    fn room_is_used_anew_once_nothing_of_it_is_in_use() {
        let mut incoming = Incoming::default();
        let mut held = VecDeque::new();
        for step in 0..1_000_usize {
            let like = u8::try_from(step % 251).unwrap();
            held.push_back((pass(&mut incoming, 10_000, like), like));
            if held.len() == 20 {
                held.pop_front();
            }
            assert!(held.iter().all(|(value, like)| value.iter().all(|byte| byte == like)), "{step}");
            // Those that are held lie in two or three.
            assert!(pieces(&incoming) <= 4 && !incoming.copies, "{step}: {}", pieces(&incoming));
        }
        assert!(pieces(&incoming) >= 2);
    }

    #[test]
    fn slices_that_are_kept_keep_a_few_pieces_and_no_more() {
        let mut incoming = Incoming::default();
        let mut held = Vec::new();
        for like in 0..50 {
            held.push((pass(&mut incoming, 100, like), like));
            (0..PIECE / 10_000 + 1).for_each(|_| drop(pass(&mut incoming, 10_000, like)));
        }
        assert!(incoming.copies);
        assert!(held.iter().all(|(value, like)| value.iter().all(|byte| byte == like)));
        drop(incoming);
        let kept = kept(held.into_iter().map(|(value, _)| value));
        assert!(kept <= (MOST + 1) * PIECE, "{kept}");
    }

    #[test]
    fn values_are_sliced_off_again_once_a_piece_is_free() {
        let mut incoming = Incoming::default();
        let mut held: Vec<_> = (0..100).map(|like| pass(&mut incoming, 20_000, like)).collect();
        assert!(incoming.copies);
        held.clear();
        drop(pass(&mut incoming, 1_000, 1));
        assert!(!incoming.copies);
        (0..1_000).for_each(|_| drop(pass(&mut incoming, 10_000, 1)));
        assert!(pieces(&incoming) <= MOST + 1);
    }

    #[test]
    fn large_values_take_no_piece_away_and_leave_none_behind() {
        let mut incoming = Incoming::default();
        for length in [LARGE, LARGE + 1, PIECE, 3 * PIECE, 3 * MOST_ROOM].repeat(5) {
            let value = pass(&mut incoming, length, b'l');
            drop(pass(&mut incoming, 1_000, b's'));
            assert!(incoming.is_piece, "{length}");
            assert!(incoming.used.iter_mut().all(|piece| piece.try_reclaim(PIECE)), "{length}");
            assert!(kept([value]) < 2 * length + LEAST, "{length}");
            assert!(pieces(&incoming) <= 3, "{length}: {}", pieces(&incoming));
        }
    }

    #[test]
    fn what_rests_takes_no_room_but_what_is_in_use() {
        let mut incoming = Incoming::default();
        let held: Vec<_> = (0..30).map(|like| pass(&mut incoming, 9_000, like)).collect();
        incoming.rest();
        assert!(pieces(&incoming) >= 2, "the slices keep them, so they count");
        drop(held);
        incoming.rest();
        assert_eq!((pieces(&incoming), incoming.used.capacity(), incoming.bytes.capacity()), (0, 0, 0));
        drop(pass(&mut incoming, 9_000, 1));
    }

    #[test]
    fn half_a_value_comes_along() {
        let mut incoming = Incoming::default();
        let held: Vec<_> = (0..12).map(|like| pass(&mut incoming, 9_000, like)).collect();
        incoming.bytes.extend_from_slice(b"$9000\r\nhalf");
        while incoming.used.is_empty() {
            incoming.make_room();
            let room = incoming.bytes.capacity() - incoming.bytes.len();
            incoming.bytes.extend_from_slice(&vec![b'x'; room.min(4_000)]);
        }
        assert!(incoming.bytes.starts_with(b"$9000\r\nhalfxxx"));
        drop(held);
    }

    #[test]
    fn announced_value_finds_room_and_no_more_than_it_may() {
        for (announced, least) in [(500_000_000, MOST_ROOM), (200_000, 200_000), (10, LEAST)] {
            let mut incoming = Incoming::default();
            incoming.make_room();
            incoming.bytes.extend_from_slice(format!("${announced}\r\n").as_bytes());
            let room = incoming.make_room();
            assert!((least..2 * MOST_ROOM).contains(&room), "{announced}: {room}");
        }
    }
}
