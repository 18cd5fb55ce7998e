//! Signatures of position records. A relay continues only from its own records, even if other
//! programs write to the topic.
//!
//! The signature is the last member of the record's JSON object, so versions that do not sign can
//! still read the record. It is an HMAC-SHA-256 over the bytes of the object without that member.
//! The key is the relay's secret in the database (`relay_secret`).

use ring::hmac;

/// Bytes before and after the signature in a record.
const BEFORE: &[u8] = b",\"hmac\":\"";
const AFTER: &[u8] = b"\"}";

/// Number of hexadecimal digits of a signature.
const DIGITS: usize = 64;

/// Signs the records of one relay and verifies their signatures.
#[derive(Clone)]
pub(crate) struct Seal(hmac::Key);

impl Seal {
    /// Creates a seal with the relay's secret.
    pub(crate) fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Adds the signature to a JSON object that has at least one member.
    pub(super) fn sign(&self, mut object: Vec<u8>) -> Vec<u8> {
        let signature = hmac::sign(&self.0, &object);
        object.pop();
        object.extend_from_slice(BEFORE);
        for byte in signature.as_ref() {
            object.extend_from_slice(format!("{byte:02x}").as_bytes());
        }
        object.extend_from_slice(AFTER);
        object
    }

    /// Returns `true` if this relay signed the record.
    pub(crate) fn signed(&self, record: &[u8]) -> bool {
        let Some((object, signature)) = split(record) else {
            return false;
        };
        let object = [object, b"}"].concat();
        hmac::verify(&self.0, &object, &signature).is_ok()
    }
}

/// Splits a record into the object without its closing brace, and the signature.
fn split(record: &[u8]) -> Option<(&[u8], [u8; DIGITS / 2])> {
    let rest = record.strip_suffix(AFTER)?;
    let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(DIGITS)?)?;
    let object = rest.strip_suffix(BEFORE)?;
    let mut signature = [0; DIGITS / 2];
    for (byte, pair) in signature.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some((object, signature))
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_is_known_by_its_signature_and_reads_as_the_object_that_was_signed() {
        let ours = Seal::new(b"0123456789abcdef");
        let record = ours.sign(br#"{"number":7}"#.to_vec());
        assert!(ours.signed(&record));
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&record).expect("JSON")["number"],
            7
        );
        assert!(
            !Seal::new(b"fedcba9876543210").signed(&record),
            "another relay's"
        );
        assert!(
            !ours.signed(br#"{"number":7}"#) && !ours.signed(b"") && !ours.signed(&record[1..])
        );
    }

    proptest! {
        #[test]
        fn a_record_that_was_changed_anywhere_is_not_signed(
            text in "[a-z\"{},:0-9]{0,60}",
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let ours = Seal::new(b"0123456789abcdef");
            let mut record = ours.sign(format!("{{{text}}}").into_bytes());
            let at = at.index(record.len());
            record[at] ^= 1 << bit;
            // The digits of a signature are accepted in either letter case.
            let same = ours
                .sign(format!("{{{text}}}").into_bytes())
                .eq_ignore_ascii_case(&record)
                && at + DIGITS + AFTER.len() >= record.len();
            prop_assert_eq!(ours.signed(&record), same && split(&record).is_some());
        }
    }
}
