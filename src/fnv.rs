//! The 64-bit FNV-1a hash, for fingerprints that are stored or part of a name.
//!
//! Unlike the standard library's hashers, it returns the same value in every version and on every
//! machine. It is not for secrets, nor for keys that an attacker chooses.

/// Offset basis and prime of the 64-bit variant, as its authors (Fowler, Noll, Vo) define them.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// Returns the hash of these bytes.
pub(crate) fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(OFFSET, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vectors of the authors. Stored hashes depend on them.
    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a([]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(*b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(*b"foobar"), 0x8594_4171_f739_67e8);
    }
}
