//! Making payloads smaller, and whole again.
//!
//! What is worth it depends on the size: below a kibibyte the round trip costs the same either way; up to four
//! `lz4` takes a microsecond; above, a slower one saves a third more. Which one was used is written in the entry,
//! so reading does not depend on the setting.
//!
//! Reading is bounded by what the entry declares and by what its bytes can bear out: every one of the formats
//! has a highest ratio, an entry that claims more is refused before anything is allocated, and whatever comes out
//! must be exactly as long as was declared. Written is only what keeps to [`MAX_RATIO`], so that twenty bytes never
//! cost more than twenty kibibytes.
//!
//! `deflate` and `zstd` need tables of some hundred kibibytes. Every thread that needed them keeps one set, since
//! making them takes longer than compressing a small value.

use std::cell::RefCell;

use bytes::Bytes;
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};

/// How much the remote tier's room and the network are worth against the processor.
///
/// Values below 1 KiB go as they are. A compressed value is kept only if that saves at least 12 %.
///
/// | | 1 to 4 KiB | above | above, with feature `zstd` |
/// |-|-|-|-|
/// | `Off` | – | – | – |
/// | `Light` | lz4 | lz4 | lz4 |
/// | `Balanced` | lz4 | deflate 2 | zstd 1 |
/// | `Heavy` | deflate 6 (zstd 9) | deflate 6 | zstd 9 |
///
/// Measured on JSON tool results (one core of a shared machine with two; microseconds to compress and to
/// decompress, and how many times smaller):
///
/// | | 1.2 KB | 4.1 KB | 11 KB | 118 KB |
/// |-|-|-|-|-|
/// | lz4 | 1 / 0.2, 1.5× | 3 / 0.9, 2.0× | 9 / 2.6, 2.2× | 89 / 27, 2.4× |
/// | deflate 2 | 9 / 2.4, 2.2× | 15 / 4.8, 2.9× | 31 / 9.8, 3.2× | 380 / 79, 3.5× |
/// | zstd 1 | 5 / 2.3, 2.1× | 8 / 3.3, 2.9× | 20 / 7.2, 3.3× | 158 / 55, 3.8× |
/// | deflate 6 | 10 / 2.4, 2.2× | 19 / 4.5, 3.0× | 50 / 9.2, 3.5× | 1,670 / 64, 4.2× |
/// | zstd 9 | 10 / 1.9, 2.1× | 31 / 3.3, 3.0× | 108 / 6.6, 3.5× | 1,790 / 48, 4.1× |
///
/// So: `Off` where the store is on the same machine and has room, or values are compressed already (images);
/// `Light` where the network is fast, or values are read from the store far more often than their bytes cost
/// there; `Heavy` where values are written seldom and the store's memory is dear. Otherwise leave it.
///
/// Every entry says how it was compressed, and is read whatever the setting. Only an entry of `zstd` is a miss to a
/// process that was built without that feature, so processes that share a store should have it alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// None.
    Off,
    /// What costs about as much as copying.
    Light,
    /// What pays on the usual network, unless set.
    #[default]
    Balanced,
    /// What makes it smallest.
    Heavy,
}

/// Smaller values are not compressed.
const LEAST: usize = 1 << 10;
/// Up to here the quickest is the best.
const SMALL: usize = 4 << 10;
/// How many times larger than its bytes a value may be: what `deflate` can reach at the most.
const MAX_RATIO: u64 = 1_032;
/// What `lz4` can reach at the most.
const MAX_LZ4_RATIO: u64 = 255;

/// How a payload is compressed; the numbers are what entries call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    None,
    Lz4,
    #[cfg_attr(
        all(feature = "zstd", not(test)),
        expect(dead_code, reason = "read always, written only where there is nothing better")
    )]
    Deflate {
        level: u32,
    },
    #[cfg(feature = "zstd")]
    Zstd {
        level: i32,
    },
}

const NONE: u8 = 0;
const LZ4: u8 = 1;
const DEFLATE: u8 = 2;
const ZSTD: u8 = 3;

impl Compression {
    /// Whether a value of so many bytes is to be compressed at all.
    pub(super) fn applies_to(self, raw_length: usize) -> bool {
        self.method(raw_length) != Method::None
    }

    fn method(self, raw_length: usize) -> Method {
        if raw_length < LEAST {
            return Method::None;
        }
        match self {
            Self::Off => Method::None,
            Self::Light => Method::Lz4,
            Self::Balanced if raw_length <= SMALL => Method::Lz4,
            #[cfg(feature = "zstd")]
            Self::Balanced => Method::Zstd { level: 1 },
            #[cfg(not(feature = "zstd"))]
            Self::Balanced => Method::Deflate { level: 2 },
            #[cfg(feature = "zstd")]
            Self::Heavy => Method::Zstd { level: 9 },
            #[cfg(not(feature = "zstd"))]
            Self::Heavy => Method::Deflate { level: 6 },
        }
    }

    /// The bytes to write and the number of what was done to them: as they are, if that is as good.
    pub(super) fn pack(self, raw: Bytes) -> (u8, Bytes) {
        let method = self.method(raw.len());
        let (method, packed) = match method.pack(&raw) {
            // Nearly nothing but zeros, say. This one keeps to the ratio by its nature.
            Some(packed) if !is_readable(packed.len(), raw.len()) => (Method::Lz4, Method::Lz4.pack(&raw)),
            packed => (method, packed),
        };
        packed.map_or((NONE, raw), |packed| (method.number(), packed.into()))
    }
}

impl Method {
    fn number(self) -> u8 {
        match self {
            Self::None => NONE,
            Self::Lz4 => LZ4,
            Self::Deflate { .. } => DEFLATE,
            #[cfg(feature = "zstd")]
            Self::Zstd { .. } => ZSTD,
        }
    }

    /// `None` unless it saves enough.
    fn pack(self, raw: &[u8]) -> Option<Vec<u8>> {
        let most = worth_keeping(raw.len());
        let packed = match self {
            Self::None => return None,
            Self::Lz4 => lz4_flex::block::compress(raw),
            Self::Deflate { level } => deflate(raw, level, most)?,
            #[cfg(feature = "zstd")]
            Self::Zstd { level } => zstandard::pack(raw, level, most)?,
        };
        (packed.len() <= most).then_some(packed)
    }
}

/// Whether this process can read what entries call by this number.
pub(super) fn is_known(number: u8) -> bool {
    matches!(number, NONE | LZ4 | DEFLATE) || number == ZSTD && cfg!(feature = "zstd")
}

/// The bytes that were packed, if there are exactly as many as declared. What was packed is a part of `stored`.
///
/// Allocates what was declared, and only if the packed bytes can bear it out.
pub(super) fn unpack(number: u8, stored: &Bytes, packed: &[u8], raw_length: u32) -> Option<Bytes> {
    let length = usize::try_from(raw_length).ok()?;
    if !is_readable(packed.len(), length) {
        return None;
    }
    let raw = match number {
        NONE => return (packed.len() == length).then(|| stored.slice_ref(packed)),
        LZ4 if u64::from(raw_length) <= MAX_LZ4_RATIO.saturating_mul(packed.len() as u64) => {
            let mut raw = vec![0; length];
            let read = lz4_flex::block::decompress_into(packed, &mut raw).ok()?;
            raw.truncate(read);
            raw
        }
        DEFLATE => inflate(packed, length)?,
        #[cfg(feature = "zstd")]
        ZSTD => zstandard::unpack(packed, length)?,
        _ => return None,
    };
    (raw.len() == length).then(|| raw.into())
}

/// The most bytes that are still 12 % less than `raw_length`.
fn worth_keeping(raw_length: usize) -> usize {
    raw_length / 25 * 22
}

fn is_readable(packed: usize, raw: usize) -> bool {
    raw as u64 <= MAX_RATIO.saturating_mul(packed as u64)
}

thread_local! {
    static DEFLATER: RefCell<Option<(u32, Compress)>> = const { RefCell::new(None) };
    static INFLATER: RefCell<Option<Decompress>> = const { RefCell::new(None) };
}

/// Without the header and checksum of `zlib`, since the entry has its own. `None` if it takes more than `most`.
fn deflate(raw: &[u8], level: u32, most: usize) -> Option<Vec<u8>> {
    DEFLATER.with_borrow_mut(|kept| {
        if kept.as_ref().is_none_or(|(kept, _)| *kept != level) {
            *kept = Some((level, Compress::new(flate2::Compression::new(level), false)));
        }
        let (_, deflater) = kept.as_mut()?;
        deflater.reset();
        let mut packed = Vec::with_capacity(most);
        let status = deflater.compress_vec(raw, &mut packed, FlushCompress::Finish).ok()?;
        (status == Status::StreamEnd).then_some(packed)
    })
}

fn inflate(packed: &[u8], length: usize) -> Option<Vec<u8>> {
    INFLATER.with_borrow_mut(|kept| {
        let inflater = kept.get_or_insert_with(|| Decompress::new(false));
        inflater.reset(false);
        // One more than declared: with no room left, whether the end is still looked for is up to the library.
        let mut raw = Vec::with_capacity(length + 1);
        let status = inflater.decompress_vec(packed, &mut raw, FlushDecompress::Finish).ok()?;
        let whole = status == Status::StreamEnd && inflater.total_in() == packed.len() as u64;
        whole.then_some(raw)
    })
}

#[cfg(feature = "zstd")]
mod zstandard {
    use std::cell::RefCell;

    use zstd::bulk::{Compressor, Decompressor};

    thread_local! {
        static COMPRESSOR: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
        static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }

    pub(super) fn pack(raw: &[u8], level: i32, most: usize) -> Option<Vec<u8>> {
        COMPRESSOR.with_borrow_mut(|kept| {
            if kept.as_ref().is_none_or(|(kept, _)| *kept != level) {
                *kept = Some((level, Compressor::new(level).ok()?));
            }
            let (_, compressor) = kept.as_mut()?;
            let mut packed = Vec::with_capacity(most);
            // Fails where there is not room enough.
            compressor.compress_to_buffer(raw, &mut packed).ok()?;
            Some(packed)
        })
    }

    pub(super) fn unpack(packed: &[u8], length: usize) -> Option<Vec<u8>> {
        DECOMPRESSOR.with_borrow_mut(|kept| {
            if kept.is_none() {
                *kept = Some(Decompressor::new().ok()?);
            }
            let mut raw = Vec::with_capacity(length);
            kept.as_mut()?.decompress_to_buffer(packed, &mut raw).ok()?;
            Some(raw)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY_SETTING: [Compression; 4] =
        [Compression::Off, Compression::Light, Compression::Balanced, Compression::Heavy];

    /// Every method that this build has.
    const EVERY_METHOD: &[Method] = &[
        Method::Lz4,
        Method::Deflate { level: 2 },
        Method::Deflate { level: 6 },
        #[cfg(feature = "zstd")]
        Method::Zstd { level: 1 },
        #[cfg(feature = "zstd")]
        Method::Zstd { level: 9 },
    ];

    /// Words in no order, which is what compresses about as well as tool results do.
    fn text(length: usize) -> Bytes {
        let mut random = fastrand::Rng::with_seed(7);
        let words = ["server ", "model ", "\"query\":", "the ", "document ", "12345,", "token ", "{}"];
        let mut text = String::new();
        while text.len() < length {
            text.push_str(words[random.usize(..words.len())]);
        }
        text.truncate(length);
        text.into()
    }

    fn noise(length: usize) -> Bytes {
        let mut random = fastrand::Rng::with_seed(7);
        (0..length).map(|_| random.u8(..)).collect::<Vec<_>>().into()
    }

    fn unpacked(number: u8, packed: &Bytes, length: usize) -> Option<Bytes> {
        unpack(number, packed, packed, u32::try_from(length).unwrap())
    }

    #[test]
    fn what_was_packed_is_unpacked_at_every_size_and_setting() {
        for length in [0, 1, 1_023, 1_024, 4_096, 4_097, 11_000, 65_535, 65_536, 65_537, 1 << 20] {
            for raw in [text(length), noise(length), vec![0; length].into()] {
                for setting in EVERY_SETTING {
                    let (number, packed) = setting.pack(raw.clone());
                    assert!(packed.len() <= raw.len());
                    assert_eq!(unpacked(number, &packed, length), Some(raw.clone()), "{setting:?}, {length}");
                }
            }
        }
    }

    #[test]
    fn setting_and_size_choose_the_method() {
        let number = |setting: Compression, length| setting.pack(text(length)).0;
        let slow = if cfg!(feature = "zstd") { ZSTD } else { DEFLATE };
        for (setting, expected) in [
            (Compression::Off, [NONE, NONE, NONE, NONE]),
            (Compression::Light, [NONE, LZ4, LZ4, LZ4]),
            (Compression::Balanced, [NONE, LZ4, LZ4, slow]),
            (Compression::Heavy, [NONE, slow, slow, slow]),
        ] {
            assert_eq!([1_023, 1_024, 4_096, 4_097].map(|length| number(setting, length)), expected);
        }
    }

    #[test]
    fn what_saves_less_than_an_eighth_is_kept_as_it_is() {
        // Text at the end of what cannot be compressed, so that as much is saved as there is text.
        let mixed = |text_share: usize| {
            let length = 100_000;
            let mut bytes = noise(length * (100 - text_share) / 100).to_vec();
            bytes.resize(length, b' ');
            Bytes::from(bytes)
        };
        for setting in [Compression::Light, Compression::Balanced, Compression::Heavy] {
            assert_eq!(setting.pack(mixed(11)).0, NONE);
            assert_ne!(setting.pack(mixed(14)).0, NONE);
            assert_eq!(setting.pack(noise(100_000)), (NONE, noise(100_000)));
        }
        assert_eq!(worth_keeping(100), 88);
        assert_eq!(worth_keeping(0), 0);
    }

    #[test]
    fn only_what_was_declared_comes_out() {
        for method in EVERY_METHOD {
            let raw = text(10_000);
            let packed = Bytes::from(method.pack(&raw).unwrap());
            assert_eq!(unpacked(method.number(), &packed, raw.len()), Some(raw.clone()), "{method:?}");
            for length in [0, 1, raw.len() - 1, raw.len() + 1, 2 * raw.len(), packed.len()] {
                assert_eq!(unpacked(method.number(), &packed, length), None, "{method:?}, {length}");
            }
            for cut in 0..packed.len() {
                assert_eq!(unpacked(method.number(), &packed.slice(..cut), raw.len()), None, "{method:?}");
            }
        }
    }

    #[test]
    fn bytes_after_the_end_of_a_stream_are_refused() {
        for method in EVERY_METHOD {
            let raw = text(10_000);
            let mut longer = method.pack(&raw).unwrap();
            longer.push(0);
            assert_eq!(unpacked(method.number(), &longer.into(), raw.len()), None, "{method:?}");
        }
    }

    #[test]
    fn number_that_is_not_known_is_refused() {
        for number in 0..=u8::MAX {
            let known = unpacked(number, &text(100), 100).is_some();
            assert_eq!(known, number == NONE, "{number}");
            assert_eq!(is_known(number), number < ZSTD || number == ZSTD && cfg!(feature = "zstd"));
        }
    }

    #[test]
    fn few_bytes_that_declare_many_cost_what_they_could_become() {
        let bytes = Bytes::from(vec![0xff; 20]);
        for number in 0..=u8::MAX {
            for declared in [20 * MAX_RATIO + 1, 1 << 20, u64::from(u32::MAX)] {
                let declared = u32::try_from(declared).unwrap();
                let used = allocation_counter::measure(|| {
                    assert_eq!(unpack(number, &bytes, &bytes, declared), None);
                });
                assert_eq!(used.bytes_total, 0, "{number}, {declared}");
            }
        }
        let used =
            allocation_counter::measure(|| assert_eq!(unpack(LZ4, &bytes, &bytes, 20 * 255 + 1), None));
        assert_eq!(used.bytes_total, 0);
        // What would be as long as it says, and longer than is written.
        #[cfg(feature = "zstd")]
        {
            let zeros = vec![0; 1 << 20];
            let bomb = Bytes::from(zstandard::pack(&zeros, 9, zeros.len()).unwrap());
            assert!(bomb.len() < 1_000);
            assert_eq!(unpack(ZSTD, &bomb, &bomb, 1 << 20), None);
        }
    }

    #[test]
    fn zeros_are_written_so_that_they_can_be_read() {
        for length in [1_024, 5_000, 100_000, 8 << 20] {
            for setting in [Compression::Light, Compression::Balanced, Compression::Heavy] {
                let (number, packed) = setting.pack(vec![0; length].into());
                assert_ne!(number, NONE);
                assert!(unpacked(number, &packed, length).is_some_and(|raw| raw.len() == length));
            }
        }
    }
}
