//! Keys and values of elements. A node has hundreds of thousands, nearly all shorter than the bookkeeping of a heap
//! block, so short ones lie where they are held.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut};

/// Bytes of a fixed number, ordered and compared as a slice.
#[derive(Clone)]
pub struct Bytes(Place);

/// A slot, an IPv6 address, a protocol and a port are 28 bytes: the longest key of the layout.
const SHORT: usize = 30;

#[derive(Clone)]
enum Place {
    Here { len: u8, bytes: [u8; SHORT] },
    Heap(Box<[u8]>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Place::Here { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Place::Heap(bytes) => bytes,
        }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Place::Here { len, bytes } => bytes.get_mut(..usize::from(*len)).unwrap_or_default(),
            Place::Heap(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Bytes {
    fn from(from: &[u8]) -> Self {
        let mut bytes = [0; SHORT];
        match (bytes.get_mut(..from.len()), u8::try_from(from.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(from);
                Self(Place::Here { len, bytes })
            }
            _ => Self(Place::Heap(from.into())),
        }
    }
}

impl<const N: usize> From<[u8; N]> for Bytes {
    fn from(from: [u8; N]) -> Self {
        from.as_slice().into()
    }
}

impl From<Bytes> for Vec<u8> {
    fn from(bytes: Bytes) -> Self {
        match bytes.0 {
            Place::Heap(bytes) => bytes.into(),
            Place::Here { .. } => bytes.to_vec(),
        }
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Bytes {}

impl PartialOrd for Bytes {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bytes {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for Bytes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_their_slice_wherever_they_lie() {
        let all: Vec<u8> = (0..64).collect();
        for len in 0..=all.len() {
            let bytes = Bytes::from(&all[..len]);
            assert_eq!(*bytes, all[..len]);
            assert_eq!(bytes, bytes.clone());
            assert_eq!(Bytes::from(&all[..len.saturating_sub(1)]) < bytes, len > 0);
        }
        assert!(size_of::<Bytes>() <= 32, "{}", size_of::<Bytes>());
    }
}
