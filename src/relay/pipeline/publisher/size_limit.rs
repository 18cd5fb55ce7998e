//! Checks a record against its topic's `max.message.bytes` before it is sent.
//!
//! The broker compares the size of the stored, compressed batch. The compressed size of a larger
//! record is therefore estimated. If the estimate does not decide, the broker decides.

use std::time::Duration;

use tokio::time::Instant;

/// Time for which a limit is valid. An operator may raise it at any time, and an event that it
/// refuses wrongly waits.
const RELIED_ON: Duration = Duration::from_secs(10);

/// Size of a record's batch without key, value and headers, at least and at most, in bytes.
const OVERHEAD: (usize, usize) = (61, 512);

/// A topic's limit and the time of its look-up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SizeLimit {
    pub(super) bytes: usize,
    at: Instant,
}

/// Bounds of the true size in percent of the estimate. Other implementations find other
/// repetitions.
const TOLERANCE: (usize, usize) = (92, 125);

/// The producer's compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    /// LZ4 or Snappy, which only replace repetitions.
    Repetitions,
    /// An algorithm whose result cannot be estimated.
    Other,
}

/// Result of a comparison with a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fits,
    TooLarge,
    /// The broker decides.
    Unknown,
}

/// A record to compare: its value, and the maximum size of its key and headers in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight<'a> {
    pub(super) value: &'a [u8],
    pub(super) rest: usize,
    pub(super) compression: Compression,
}

impl Compression {
    /// Returns the kind of the named algorithm.
    pub(super) fn of(name: &str) -> Self {
        match name {
            "none" => Self::None,
            "lz4" | "snappy" => Self::Repetitions,
            _ => Self::Other,
        }
    }
}

impl SizeLimit {
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            bytes,
            at: Instant::now(),
        }
    }

    /// Returns `true` if the limit must be looked up again before it refuses a record.
    pub(super) fn is_stale(&self) -> bool {
        self.at.elapsed() > RELIED_ON
    }

    /// Returns the reason for a refusal by this limit.
    pub(super) fn reason(&self, topic: &str) -> String {
        format!(
            "larger than the {} bytes that max.message.bytes of topic `{topic}` allows",
            self.bytes
        )
    }

    /// Compares a record with the limit.
    pub(super) fn weigh(&self, weight: Weight<'_>) -> Verdict {
        let Weight {
            value,
            rest,
            compression,
        } = weight;
        let most = value.len() + rest + OVERHEAD.1;
        if most <= self.bytes {
            return Verdict::Fits;
        }
        let (least, most) = match compression {
            Compression::None => (value.len() + OVERHEAD.0, most),
            Compression::Repetitions => {
                // With this size the lower bound exceeds the limit.
                let enough = self.bytes * 100 / TOLERANCE.0 + 1;
                let estimate = compressed_size(value, enough);
                (
                    estimate * TOLERANCE.0 / 100,
                    most.min(estimate * TOLERANCE.1 / 100 + rest + OVERHEAD.1),
                )
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

/// Number of remembered positions of four-byte sequences, as in fast compressors.
const REMEMBERED: usize = 4096;

/// Estimates the size of `bytes` after compression with LZ4, in bytes. Literals are kept. A
/// repetition of four bytes or more within 64 kB costs three bytes, and one more for each 255 bytes
/// of its length. Stops counting at `enough`.
fn compressed_size(bytes: &[u8], enough: usize) -> usize {
    let mut seen = [usize::MAX; REMEMBERED];
    let (mut size, mut literals, mut at) = (0, 0, 0);
    let quad = |at: usize| bytes.get(at..at + 4);
    while let Some(next) = quad(at).filter(|_| size + literals <= enough) {
        let hash = u32::from_le_bytes([next[0], next[1], next[2], next[3]])
            .wrapping_mul(2_654_435_761)
            >> 20;
        let before = std::mem::replace(&mut seen[hash as usize % REMEMBERED], at);
        if before != usize::MAX && at - before < 65_536 && quad(before) == Some(next) {
            let length = bytes[at..]
                .iter()
                .zip(&bytes[before..])
                .take_while(|(a, b)| a == b)
                .count();
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

    /// Hexadecimal digits without repetitions.
    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 7_u64;
        let next = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
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
        assert!(
            (900..1_300).contains(&size(&repeated)),
            "{}",
            size(&repeated)
        );
        assert_eq!((size(b""), size(b"abc")), (1, 4));
        assert!((10_000..10_300).contains(&compressed_size(&noise, 10_000)));
    }

    #[test]
    fn only_what_is_certain_is_decided_here() {
        let limit = SizeLimit::new(20_000);
        let (small, large, even, plain) = (
            noise(19_000),
            noise(30_000),
            noise(20_500),
            vec![b'x'; 100_000],
        );
        use {Compression as C, Verdict as V};
        let verdicts = |value: &[u8]| {
            [C::None, C::Repetitions, C::Other].map(|compression| {
                limit.weigh(Weight {
                    value,
                    rest: 300,
                    compression,
                })
            })
        };
        assert_eq!(verdicts(&small), [V::Fits; 3]);
        assert_eq!(verdicts(&large), [V::TooLarge, V::TooLarge, V::Unknown]);
        assert_eq!(verdicts(&plain), [V::TooLarge, V::Fits, V::Unknown]);
        assert_eq!(verdicts(&even), [V::TooLarge, V::Unknown, V::Unknown]);
        assert_eq!(verdicts(&noise(19_600))[0], V::Unknown);
    }
}
