//! Partition of a key, computed without the code under test.

/// Returns the partition that the Java client computes for `key`
/// (`Utils.toPositive(Utils.murmur2(key)) % partitions`).
pub(crate) fn partition(key: &str, partitions: i32) -> i32 {
    i32::try_from(hash(key.as_bytes()) & 0x7fff_ffff).expect("31 bits") % partitions
}

fn hash(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ u32::try_from(key.len()).expect("short");
    let whole = key.len() / 4 * 4;
    for word in key[..whole].chunks(4) {
        let mut word = u32::from_le_bytes(word.try_into().expect("four bytes")).wrapping_mul(M);
        word = (word ^ (word >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ word;
    }
    if whole < key.len() {
        let rest = key[whole..]
            .iter()
            .rev()
            .fold(0, |rest, byte| (rest << 8) | u32::from(*byte));
        hash = (hash ^ rest).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[test]
fn hashes_are_those_of_the_java_clients_own_test() {
    for (key, expected) in [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("abc", 479_470_107),
    ] {
        assert_eq!(hash(key.as_bytes()).cast_signed(), expected, "{key}");
    }
}
