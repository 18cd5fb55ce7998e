//! Channel binding `tls-server-end-point` (RFC 5929, section 4): a hash of the server's
//! certificate. Pure.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};

/// Signature algorithms by the content of their object identifier, and the hash for channel
/// binding: that of the signature, or SHA-256 for MD5 and SHA-1.
const ALGORITHMS: [(&[u8], &Algorithm); 8] = [
    // md5, sha1, sha256, sha384 and sha512WithRSAEncryption
    (
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04],
        &SHA256,
    ),
    (
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05],
        &SHA256,
    ),
    (
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b],
        &SHA256,
    ),
    (
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c],
        &SHA384,
    ),
    (
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d],
        &SHA512,
    ),
    // ecdsa-with-SHA256, SHA384 and SHA512
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02], &SHA256),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03], &SHA384),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04], &SHA512),
];

/// id-RSASSA-PSS, whose parameters contain the hash.
const PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];

/// id-sha256, id-sha384 and id-sha512.
const HASHES: [(&[u8], &Algorithm); 3] = [
    (
        &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01],
        &SHA256,
    ),
    (
        &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02],
        &SHA384,
    ),
    (
        &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03],
        &SHA512,
    ),
];

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// Hashes a certificate for channel binding. Returns `None` if its signature algorithm has no
/// separate hash (Ed25519), or if the bytes are not a certificate.
pub(super) fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signature }
    // signatureAlgorithm ::= SEQUENCE { algorithm, parameters }
    let (inner, _) = element(certificate, SEQUENCE)?;
    let (_, rest) = element(inner, SEQUENCE)?;
    let (algorithm, _) = element(rest, SEQUENCE)?;
    let (identifier, parameters) = element(algorithm, OBJECT_IDENTIFIER)?;
    let found = match identifier {
        PSS => HASHES
            .iter()
            .find(|(hash, _)| parameters.windows(hash.len()).any(|part| part == *hash)),
        other => ALGORITHMS.iter().find(|(algorithm, _)| *algorithm == other),
    };
    found.map(|(_, hash)| digest(hash, certificate).as_ref().to_vec())
}

/// Splits off the first element of a DER encoding. Returns its content and the rest.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk()?;
    if found != tag {
        return None;
    }
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // The length of a certificate fits into four bytes.
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (
                bytes
                    .iter()
                    .fold(0, |len, byte| len << 8 | usize::from(*byte)),
                rest,
            )
        }
        _ => return None,
    };
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let len = content.len();
        let header = if len < 0x80 {
            vec![tag, len as u8]
        } else {
            vec![tag, 0x82, (len >> 8) as u8, len as u8]
        };
        [header, content.to_vec()].concat()
    }

    fn certificate(algorithm: &[u8], parameters: &[u8]) -> Vec<u8> {
        let algorithm = der(
            SEQUENCE,
            &[der(OBJECT_IDENTIFIER, algorithm), parameters.to_vec()].concat(),
        );
        der(
            SEQUENCE,
            &[der(SEQUENCE, &[0; 300]), algorithm, der(3, &[0; 64])].concat(),
        )
    }

    #[test]
    fn the_hash_is_that_of_the_signature_algorithm() {
        for (algorithm, hash) in ALGORITHMS {
            let certificate = certificate(algorithm, &[]);
            assert_eq!(
                tls_server_end_point(&certificate),
                Some(digest(hash, &certificate).as_ref().to_vec())
            );
        }
        let pss = certificate(PSS, &der(SEQUENCE, &der(OBJECT_IDENTIFIER, HASHES[1].0)));
        assert_eq!(tls_server_end_point(&pss).map(|hash| hash.len()), Some(48));
        let ed25519 = certificate(&[0x2b, 0x65, 0x70], &[]);
        assert_eq!(tls_server_end_point(&ed25519), None);
    }

    proptest! {
        #[test]
        fn no_input_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            cut in 0usize..400,
        ) {
            let _ = tls_server_end_point(&bytes);
            let whole = certificate(ALGORITHMS[2].0, &bytes);
            let _ = tls_server_end_point(&whole[..cut.min(whole.len())]);
        }
    }
}
