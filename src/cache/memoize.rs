//! An async function that remembers.

use std::{fmt, marker::PhantomData, sync::Arc};

use super::{Cache, Key, Loaded};
use crate::{Error, error::BoxError};

/// What a [memoized](Cache::memoize) function may take: something that makes one part of a key, and a different one for
/// every value.
///
/// Numbers with a fraction are missing on purpose: what is equal there, and what is not, depends on whom one asks.
pub trait Argument {
    /// The key, with a part for this.
    #[must_use]
    fn append_to(&self, key: Key<'static>) -> Key<'static>;
}

macro_rules! of_bytes {
    ($($number:ty),*) => {$(
        impl Argument for $number {
            fn append_to(&self, key: Key<'static>) -> Key<'static> {
                key.part(&self.to_le_bytes())
            }
        }
    )*};
}

of_bytes!(i8, i16, i32, i64, i128, u8, u16, u32, u64, u128);

impl Argument for str {
    fn append_to(&self, key: Key<'static>) -> Key<'static> {
        key.part(self)
    }
}

impl Argument for String {
    fn append_to(&self, key: Key<'static>) -> Key<'static> {
        key.part(self)
    }
}

impl Argument for bool {
    fn append_to(&self, key: Key<'static>) -> Key<'static> {
        key.part(&[u8::from(*self)])
    }
}

impl Argument for char {
    fn append_to(&self, key: Key<'static>) -> Key<'static> {
        u32::from(*self).append_to(key)
    }
}

impl<T: Argument + ?Sized> Argument for &T {
    fn append_to(&self, key: Key<'static>) -> Key<'static> {
        (**self).append_to(key)
    }
}

impl<T: Argument + ?Sized> Argument for Arc<T> {
    fn append_to(&self, key: Key<'static>) -> Key<'static> {
        (**self).append_to(key)
    }
}

impl<T: Argument> Argument for Option<T> {
    fn append_to(&self, key: Key<'static>) -> Key<'static> {
        match self {
            None => key.part(&[0]),
            Some(some) => some.append_to(key.part(&[1])),
        }
    }
}

impl<T: Argument> Argument for [T] {
    fn append_to(&self, key: Key<'static>) -> Key<'static> {
        let key = key.part(&(self.len() as u64).to_le_bytes());
        self.iter().fold(key, |key, item| item.append_to(key))
    }
}

impl<T: Argument> Argument for Vec<T> {
    fn append_to(&self, key: Key<'static>) -> Key<'static> {
        self.as_slice().append_to(key)
    }
}

impl Argument for () {
    fn append_to(&self, key: Key<'static>) -> Key<'static> {
        key
    }
}

macro_rules! of_tuples {
    ($(($($name:ident),+))*) => {$(
        impl<$($name: Argument),+> Argument for ($($name,)+) {
            fn append_to(&self, key: Key<'static>) -> Key<'static> {
                #[expect(non_snake_case, reason = "named as their types")]
                let ($($name,)+) = self;
                $(let key = $name.append_to(key);)+
                key
            }
        }
    )*};
}

of_tuples!((A)(A, B)(A, B, C)(A, B, C, D)(A, B, C, D, E)(A, B, C, D, E, F));

/// A function that [remembers](Cache::memoize) what it returned.
pub struct Memoized<V: Clone + Send + Sync + 'static, A, F> {
    cache: Cache<V>,
    key: Key<'static>,
    tags: Vec<String>,
    function: Arc<F>,
    arguments: PhantomData<fn(A)>,
}

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// Wraps an async function, so that it runs once for every set of arguments, for as long as its value lives.
    ///
    /// The key is `name`, which tells it from other functions of this cache, and the arguments; a tuple stands for
    /// several. The values are the same for every caller: who calls must be among the arguments where it matters.
    /// The function may return a [`Loaded`], and is otherwise a loader as that of
    /// [`get_or_load`](Self::get_or_load).
    ///
    /// # Examples
    ///
    /// ```
    /// use mcp_perf::cache::Cache;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// async fn route((from, to): (String, String)) -> Result<u32, std::io::Error> {
    ///     Ok((from.len() * to.len()) as u32) // really: hours of search
    /// }
    ///
    /// let cache = Cache::builder("routes").build()?;
    /// let route = cache.memoize("route", route).tags(["map"]);
    /// for _ in 0..3 {
    ///     assert_eq!(route.call(("lisbon".to_owned(), "oslo".to_owned())).await?, 24);
    /// }
    /// assert_eq!(cache.stats().loads, 1);
    /// # Ok(()) }
    /// ```
    pub fn memoize<A, F, R, L, E>(&self, name: &str, function: F) -> Memoized<V, A, F>
    where
        A: Argument + Send + 'static,
        F: Fn(A) -> R + Send + Sync + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<BoxError> + 'static,
    {
        Memoized {
            cache: self.clone(),
            key: Key::public("").part(name).into_owned(),
            tags: Vec::new(),
            function: Arc::new(function),
            arguments: PhantomData,
        }
    }
}

impl<V: Clone + Send + Sync + 'static, A, F> Memoized<V, A, F> {
    /// The tags that what is remembered carries: none unless set.
    #[must_use]
    pub fn tags<T: Into<String>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.tags = tags.into_iter().map(Into::into).collect();
        self
    }

    /// The key under which the value for these arguments is remembered, to remove or expire it by.
    #[must_use]
    pub fn key(&self, arguments: &A) -> Key<'static>
    where
        A: Argument,
    {
        arguments.append_to(self.key.clone())
    }

    /// What the function returns for these arguments, or returned.
    ///
    /// # Errors
    ///
    /// Those of [`Cache::get_or_load`].
    ///
    /// # Cancel safety
    ///
    /// As [`Cache::get_or_load`].
    pub async fn call<R, L, E>(&self, arguments: A) -> Result<V, Error>
    where
        A: Argument + Send + 'static,
        F: Fn(A) -> R + Send + Sync + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<BoxError> + 'static,
    {
        let key = self.key(&arguments);
        let tags: Vec<&str> = self.tags.iter().map(String::as_str).collect();
        let function = Arc::clone(&self.function);
        self.cache.get_or_load_tagged(&key, &tags, move || function(arguments)).await
    }
}

impl<V: Clone + Send + Sync + 'static, A, F> Clone for Memoized<V, A, F> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            key: self.key.clone(),
            tags: self.tags.clone(),
            function: Arc::clone(&self.function),
            arguments: PhantomData,
        }
    }
}

impl<V: Clone + Send + Sync + 'static, A, F> fmt::Debug for Memoized<V, A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memoized").field("cache", &self.cache).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn key(argument: &impl Argument) -> Key<'static> {
        argument.append_to(Key::public("").part("f").into_owned())
    }

    /// Of one type: a function has one.
    fn differ(arguments: &[impl Argument]) {
        let distinct: HashSet<_> = arguments.iter().map(key).collect();
        assert_eq!(distinct.len(), arguments.len());
    }

    #[test]
    fn different_arguments_make_different_keys() {
        differ(&["", "a", "ab", "a\0"]);
        differ(&[("", ""), ("ab", "c"), ("a", "bc"), ("abc", "")]);
        differ(&[None, Some(None), Some(Some(0_u8)), Some(Some(1))]);
        differ(&[(vec!["a"], vec!["b"]), (vec!["a", "b"], vec![]), (vec![], vec!["a", "b"])]);
        differ(&[vec![vec!["a"], vec!["b"]], vec![vec!["a", "b"]], vec![vec![], vec!["a", "b"]]]);
        differ(&[-1_i64, 0, 1, i64::MAX]);
        assert_eq!(key(&"a"), key(&"a".to_owned()));
    }
}
