//! A topic's `max.message.bytes`, applied before a record is sent.
//!
//! The broker compares the batch as it is stored, compressed. So a record that is larger uncompressed is weighed by an estimate; one
//! for which the estimate does not decide is left to the broker.

use std::time::Duration;

use tokio::time::Instant;

/// How long a limit is relied on. Somebody may raise it at any time, and what it refuses wrongly waits.
const RELIED_ON: Duration = Duration::from_secs(10);

/// What a record's batch weighs beside key, value and headers, at least and at most.
const OVERHEAD: (usize, usize) = (61, 512);

/// A topic's limit, and when it was looked up.
#[derive(Clone, Copy, Debug)]
pub(in crate::relay) struct SizeLimit {
    pub(super) bytes: usize,
    at: Instant,
}

/// How much less an estimate may be than the true size, and how much more, in percent: other implementations find other repetitions.
const TOLERANCE: (usize, usize) = (92, 125);

/// How the producer compresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    /// LZ4 or Snappy, which find repetitions and nothing else.
    Repetitions,
    /// What cannot be estimated.
    Other,
}

/// What a limit means for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fits,
    TooLarge,
    /// The broker decides.
    Unknown,
}

/// A record to be weighed: its value, and at most how many bytes key and headers have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight<'a> {
    pub(super) value: &'a [u8],
    pub(super) rest: usize,
    pub(super) compression: Compression,
}

impl Compression {
    /// The algorithm of this name.
    pub(super) fn of(name: &str) -> Self {
        match name {
            "none" => Self::None,
            "lz4" | "snappy" => Self::Repetitions,
            _ => Self::Other,
        }
    }
}

impl SizeLimit {
    pub(in crate::relay) fn new(bytes: usize) -> Self {
        Self { bytes, at: Instant::now() }
    }

    /// Whether it has to be looked up again before it refuses anything.
    pub(super) fn is_stale(&self) -> bool {
        self.at.elapsed() > RELIED_ON
    }

    /// Why a record is refused here.
    pub(super) fn reason(&self, topic: &str) -> String {
        format!("larger than the {} bytes that max.message.bytes of topic `{topic}` allows", self.bytes)
    }

    /// Weighs a record.
    pub(super) fn weigh(&self, weight: Weight<'_>) -> Verdict {
        let Weight { value, rest, compression } = weight;
        let most = value.len() + rest + OVERHEAD.1;
        if most <= self.bytes {
            return Verdict::Fits;
        }
        let (least, most) = match compression {
            Compression::None => (value.len() + OVERHEAD.0, most),
            Compression::Repetitions => {
                // Where the lower bound is above the limit.
                let enough = self.bytes * 100 / TOLERANCE.0 + 1;
                let estimate = compressed_size(value, enough);
                (estimate * TOLERANCE.0 / 100, most.min(estimate * TOLERANCE.1 / 100 + rest + OVERHEAD.1))
            }
            Compression::Other => (0, most),
        };
        match () {
            () if least > self.bytes => Verdict::TooLarge,
            () if most <= self.bytes => Verdict::Fits,
            () => Verdict::Unknown,
        }
    }
}

/// Positions of four bytes that are remembered, as the fast compressors do.
const REMEMBERED: usize = 4096;

/// About how many bytes LZ4 makes of `bytes`: literals are kept, and a repetition of four bytes or more within 64 kB costs three bytes
/// and one more for each 255 that it is longer. Counts no further than `enough`.
fn compressed_size(bytes: &[u8], enough: usize) -> usize {
    let mut seen = [usize::MAX; REMEMBERED];
    let (mut size, mut literals, mut at) = (0, 0, 0);
    let quad = |at: usize| bytes.get(at..at + 4);
    while let Some(next) = quad(at).filter(|_| size + literals <= enough) {
        let hash = u32::from_le_bytes([next[0], next[1], next[2], next[3]]).wrapping_mul(2_654_435_761) >> 20;
        let before = std::mem::replace(&mut seen[hash as usize % REMEMBERED], at);
        if before != usize::MAX && at - before < 65_536 && quad(before) == Some(next) {
            let length = bytes[at..].iter().zip(&bytes[before..]).take_while(|(a, b)| a == b).count();
            size += 3 + literals + literals / 255 + length / 255;
            (at, literals) = (at + length, 0);
        } else {
            (at, literals) = (at + 1, literals + 1);
        }
    }
    if quad(at).is_none() {
        literals += bytes.len() - at;
    }
    size + literals + literals / 255 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hexadecimal digits that do not repeat.
    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 7_u64;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            b"0123456789abcdef"[(state >> 60) as usize]
        };
        (0..bytes).map(next).collect()
    }

    #[test]
    fn repetitions_shrink_and_noise_does_not() {
        let size = |bytes: &[u8]| compressed_size(bytes, usize::MAX);
        assert!(size(&[b'x'; 200_000]) < 2_000);
        let noise = noise(50_000);
        assert!((45_000..52_000).contains(&size(&noise)), "{}", size(&noise));
        let repeated = noise[..1_000].repeat(20);
        assert!((900..1_300).contains(&size(&repeated)), "{}", size(&repeated));
        assert_eq!((size(b""), size(b"abc")), (1, 4));
        assert!((10_000..10_300).contains(&compressed_size(&noise, 10_000)));
    }

    #[test]
    fn only_what_is_certain_is_decided_here() {
        let limit = SizeLimit::new(20_000);
        let (small, large, even, plain) = (noise(19_000), noise(30_000), noise(20_500), vec![b'x'; 100_000]);
        use {Compression as C, Verdict as V};
        let verdicts =
            |value: &[u8]| [C::None, C::Repetitions, C::Other].map(|compression| limit.weigh(Weight { value, rest: 300, compression }));
        assert_eq!(verdicts(&small), [V::Fits; 3]);
        assert_eq!(verdicts(&large), [V::TooLarge, V::TooLarge, V::Unknown]);
        assert_eq!(verdicts(&plain), [V::TooLarge, V::Fits, V::Unknown]);
        assert_eq!(verdicts(&even), [V::TooLarge, V::Unknown, V::Unknown]);
        assert_eq!(verdicts(&noise(19_600))[0], V::Unknown);
    }
}
