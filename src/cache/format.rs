//! How a value becomes the payload of an entry, and where that is done: codec, then compression, bounded by
//! `max_value`, and off the runtime's threads where it would hold them up.
//!
//! Both ways are bounded by the same number, so what this process writes it can read, and whatever is read has told
//! its length before a byte of it is made.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::Semaphore, task, time::timeout};

use super::{
    codec::Codec,
    compress::{self, Compression},
    envelope::Payload,
};
use crate::{
    Error, ErrorKind,
    error::BoxError,
    sync::{Mutex, lock},
};

/// What is larger, compressed or not, is worked on by a thread that serves nobody else: 64 KiB take a tenth of a
/// millisecond, about what it costs to go there and back.
const OFF_THREAD: usize = 64 << 10;
/// How long such a thread is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The format of a cache's payloads.
pub(super) struct Format<V> {
    cache: Box<str>,
    codec: Codec<V>,
    compression: Compression,
    schema: Option<u64>,
    /// The most bytes of a value, before it is compressed.
    max_value: usize,
    /// One for each processor, so that many large values at once wait for each other and not for threads.
    off_thread: Arc<Semaphore>,
    /// There was none when one was wanted last.
    lacks_threads: Arc<AtomicBool>,
    told_too_large: AtomicBool,
    told_not_encoded: AtomicBool,
    told_unreadable: AtomicBool,
}

/// A payload and its bytes.
pub(super) struct Encoded {
    codec: u8,
    compression: u8,
    schema: Option<u64>,
    raw_length: u32,
    bytes: Bytes,
}

impl Encoded {
    pub(super) fn payload(&self) -> Payload<'_> {
        let Self { codec, compression, schema, raw_length, ref bytes } = *self;
        Payload { codec, compression, schema, raw_length, bytes }
    }
}

impl<V: Send + Sync + 'static> Format<V> {
    pub(super) fn new(
        cache: &str,
        codec: Codec<V>,
        compression: Compression,
        schema: Option<u64>,
        max_value: usize,
    ) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            cache: cache.into(),
            codec,
            compression,
            schema,
            max_value,
            off_thread: Arc::new(Semaphore::new(processors)),
            lacks_threads: Arc::default(),
            told_too_large: AtomicBool::new(false),
            told_not_encoded: AtomicBool::new(false),
            told_unreadable: AtomicBool::new(false),
        }
    }

    /// The payload of a value, unless it is too large or the codec fails, which is logged once.
    ///
    /// The codec runs here, since only it knows how large the value is; what is large is compressed elsewhere.
    pub(super) async fn encode(&self, value: &V) -> Result<Encoded, Error> {
        let raw = guarded(|| self.codec.encode(value)).map_err(|cause| self.not_encoded(cause))?;
        let length = raw.len();
        let raw_length = match u32::try_from(length) {
            Ok(raw_length) if length <= self.max_value => raw_length,
            _ => return Err(self.too_large(length)),
        };
        let compression = self.compression;
        let (number, bytes) = if length > OFF_THREAD && compression.applies_to(length) {
            let gone = |gone| Error::with_source(ErrorKind::Codec, "the value was not compressed", gone);
            self.elsewhere(move || compression.pack(raw)).await.map_err(gone)?
        } else {
            compression.pack(raw)
        };
        Ok(Encoded { codec: self.codec.id(), compression: number, schema: self.schema, raw_length, bytes })
    }

    /// The value of a payload that lies in `stored`; `None` if it is of another format, larger than allowed, or
    /// not what it says.
    pub(super) async fn decode(&self, stored: &Bytes, payload: &Payload<'_>) -> Option<V> {
        let Payload { codec, compression, schema, raw_length, bytes } = *payload;
        let length = usize::try_from(raw_length).ok()?;
        let is_ours = codec == self.codec.id() && schema == self.schema && compress::is_known(compression);
        if !is_ours || length > self.max_value {
            return None;
        }
        let is_free = self.codec.is_free() && bytes.len() == length;
        let is_large = !is_free && bytes.len().max(length) > OFF_THREAD;
        if !is_large {
            return unpacked(&self.codec, stored, payload);
        }
        let (packed, codec) = (stored.slice_ref(bytes), self.codec.clone());
        let decode = move || {
            let payload = Payload { codec: codec.id(), compression, schema, raw_length, bytes: &packed };
            unpacked(&codec, &packed, &payload)
        };
        self.elsewhere(decode).await.ok()?
    }

    /// Runs work that takes long where nobody waits for the thread; or here, if no such thread is to be had: a program
    /// may keep all of them.
    async fn elsewhere<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, BoxError> {
        let permit = Arc::clone(&self.off_thread).acquire_owned().await?;
        if self.lacks_threads.load(Ordering::Relaxed) {
            return Ok(work());
        }
        // The permit goes along, so that a caller that goes away does not leave room for one too many.
        let work = Arc::new(Mutex::new(Some((work, permit))));
        let (there, lacks) = (Arc::clone(&work), Arc::clone(&self.lacks_threads));
        let mut done = task::spawn_blocking(move || {
            lacks.store(false, Ordering::Relaxed);
            let taken = lock(&there).take();
            taken.map(|(work, _permit)| work())
        });
        let taken = match timeout(PATIENCE, &mut done).await {
            Ok(done) => return done?.ok_or_else(|| "it was done elsewhere".into()),
            Err(_) => lock(&work).take(),
        };
        match taken {
            Some((work, _permit)) => {
                // Until one is there, which is when what was left in the queue runs.
                self.lacks_threads.store(true, Ordering::Relaxed);
                Ok(work())
            }
            // It has begun.
            None => done.await?.ok_or_else(|| "it was done elsewhere".into()),
        }
    }

    /// Notes that an entry was there and could not be read: here, or already what is around the payload.
    pub(super) fn tell_unreadable(&self) {
        if !self.told_unreadable.swap(true, Ordering::Relaxed) {
            let message =
                "an entry of the remote tier cannot be read: damaged, or of another codec, schema or size";
            tracing::warn!(cache = %self.cache, "{message}");
        }
    }

    fn not_encoded(&self, cause: BoxError) -> Error {
        let error = Error::with_source(ErrorKind::Codec, "the codec cannot turn the value into bytes", cause);
        if !self.told_not_encoded.swap(true, Ordering::Relaxed) {
            tracing::warn!(cache = %self.cache, "not stored in the remote tier, nor will others like it: {error}");
        }
        error
    }

    fn too_large(&self, length: usize) -> Error {
        let most = self.max_value;
        let error = Error::new(
            ErrorKind::Codec,
            format!("the value has {length} bytes, and `max_value` allows {most} in the remote tier"),
        );
        if !self.told_too_large.swap(true, Ordering::Relaxed) {
            tracing::warn!(cache = %self.cache, "not stored in the remote tier, nor will others like it: {error}");
        }
        error
    }
}

/// The value of a payload that lies in `stored`.
fn unpacked<V>(codec: &Codec<V>, stored: &Bytes, payload: &Payload<'_>) -> Option<V> {
    let raw = compress::unpack(payload.compression, stored, payload.bytes, payload.raw_length)?;
    guarded(|| codec.decode(raw)).ok()
}

/// A codec that panics is one that fails: what lies in the store must not bring down who reads it.
fn guarded<T>(work: impl FnOnce() -> Result<T, BoxError>) -> Result<T, BoxError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("the codec panicked".into()))
}
