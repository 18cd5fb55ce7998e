//! Refused server certificates: the reason, and the remedy in terms of the database URL.
//!
//! Both the replication connection and sqlx verify with rustls, so one table covers both. A
//! certificate that has expired or is not valid yet is a temporary refusal: a later attempt
//! succeeds once the server has a new certificate or the clock is right. Other refusals last until
//! the operator changes the server's certificate or the URL.

use std::error::Error;

use tokio_rustls::rustls::{self, CertificateError};

/// Reason why a server's certificate is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The reason and the remedy.
    pub(crate) text: &'static str,
    /// A later attempt may succeed without a change of the settings.
    pub(crate) passes: bool,
}

/// Returns the refusal if a cause of the error is a refused certificate.
pub(crate) fn refusal(error: &(dyn Error + 'static)) -> Option<Refusal> {
    let mut next = Some(error);
    while let Some(error) = next {
        // `io::Error` displays the error that it wraps but does not return it as a source.
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        let found = wrapped
            .and_then(|inner| inner.downcast_ref())
            .or_else(|| error.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::InvalidCertificate(error)) = found {
            return Some(judge(error));
        }
        next = error.source();
    }
    None
}

fn judge(error: &CertificateError) -> Refusal {
    let lasting = |text| Refusal {
        text,
        passes: false,
    };
    let passing = |text| Refusal { text, passes: true };
    match error {
        CertificateError::UnknownIssuer => lasting(
            "no trusted authority has signed the server's certificate: set sslrootcert=FILE to \
             the PEM file of the authority that has (managed services offer it for download)",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            lasting(
                "the server's certificate is for another host name: write a name that the \
                 certificate lists into the URL, or use sslmode=verify-ca, which checks the \
                 authority but not the name",
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => passing(
            "the server's certificate has expired: renew it on the server; if it is still valid, \
             set this machine's clock",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => passing(
            "the server's certificate is not valid yet: compare the clocks of this machine and of \
             the server",
        ),
        CertificateError::Revoked => {
            lasting("the server's certificate has been revoked: install a new one on the server")
        }
        CertificateError::BadSignature => lasting(
            "a trusted authority has the name of the one that signed the server's certificate, but \
             another key: set sslrootcert=FILE to the current file",
        ),
        // webpki's own error, which rustls forwards as text.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => lasting(
            "the server presents the certificate of an authority (basicConstraints CA:TRUE, as \
             `openssl req -x509` creates it) as its own: sign a certificate for the server with \
             that authority, or create the self-signed one with -addext \
             basicConstraints=critical,CA:FALSE; sslmode=require encrypts without checking it",
        ),
        other if format!("{other:?}").contains("UnsupportedCertVersion") => lasting(
            "the server's certificate is of X.509 version 1, which cannot be verified: create one \
             of version 3 (with a subjectAltName)",
        ),
        _ => lasting(
            "the server's certificate cannot be verified: compare it with sslrootcert, or see the \
             previous message",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through_sqlx(error: CertificateError) -> sqlx::Error {
        sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            rustls::Error::InvalidCertificate(error),
        ))
    }

    #[test]
    fn each_refusal_names_its_remedy_whoever_verified() {
        for (error, remedy, passes) in [
            (CertificateError::UnknownIssuer, "sslrootcert=FILE", false),
            (CertificateError::NotValidForName, "verify-ca", false),
            (CertificateError::Expired, "renew it", true),
            (CertificateError::NotValidYet, "clocks", true),
            (CertificateError::Revoked, "revoked", false),
        ] {
            let tls: Box<dyn Error> = Box::new(rustls::Error::InvalidCertificate(error.clone()));
            for found in [refusal(&through_sqlx(error.clone())), refusal(&*tls)] {
                let found = found.unwrap_or_else(|| panic!("{error:?}"));
                assert!(
                    found.text.contains(remedy) && found.passes == passes,
                    "{error:?}: {found:?}"
                );
            }
        }
        assert_eq!(refusal(&sqlx::Error::PoolTimedOut), None);
    }
}
