//! Check for a database password that could be sent in clear text. It uses the settings and one
//! connection.

use super::Findings;
use crate::postgres::replication::{Channel, probe};
use crate::postgres::{DatabaseSettings, Method};

const REMEDY: &str = "use sslmode=verify-full (sslrootcert=FILE for your own authority), \
                      channel_binding=require, or require_auth=scram-sha-256";

/// Connects once and adds a warning. A failed connection is reported by another check.
pub(super) async fn look(settings: &DatabaseSettings, findings: &mut Findings) {
    if let Ok((method, channel)) = probe(settings).await
        && let Some(text) = exposure(settings, method, &channel)
    {
        findings.warn("password", text, REMEDY);
    }
}

/// Returns how the password could be read in transit. As in libpq, a server may request it in clear
/// text unless the settings exclude that.
fn exposure(settings: &DatabaseSettings, method: Method, channel: &Channel) -> Option<String> {
    let may_be_asked = settings.may_send_password();
    if settings.password().is_none() || settings.is_local() || channel.verified || !may_be_asked {
        return None;
    }
    let connection = if channel.encrypted {
        "the server's certificate is not verified"
    } else {
        "the connection is not encrypted"
    };
    Some(match method {
        Method::Password => {
            format!("{connection}, and the server requests the password in clear text")
        }
        Method::Md5 => format!(
            "{connection}, and the server requests an MD5 hash of the password, \
             which is as sensitive as the password"
        ),
        Method::None | Method::Scram | Method::ScramPlus => {
            format!(
                "{connection}: a machine in between could request and receive the password \
                 in clear text"
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_exposed_where_a_server_that_nobody_verified_may_ask_for_it() {
        let plain = Channel::default();
        let encrypted = Channel {
            encrypted: true,
            ..Channel::default()
        };
        let verified = Channel {
            verified: true,
            ..encrypted.clone()
        };
        let url = |host: &str, rest: &str| {
            DatabaseSettings::parse(&format!("postgres://ann:secret@{host}/shop{rest}"))
                .expect("a URL")
        };
        for (settings, method, channel, expected) in [
            (
                url("db", ""),
                Method::Password,
                &plain,
                Some("not encrypted, and the server requests the password in clear text"),
            ),
            (
                url("db", ""),
                Method::Scram,
                &plain,
                Some("a machine in between"),
            ),
            (
                url("db", "?sslmode=require"),
                Method::Md5,
                &encrypted,
                Some("not verified, and the server requests an MD5"),
            ),
            (
                url("db", "?sslmode=require"),
                Method::ScramPlus,
                &encrypted,
                Some("not verified: a machine in between"),
            ),
            (
                url("db", "?sslmode=verify-full"),
                Method::Password,
                &verified,
                None,
            ),
            (
                url("db", "?sslmode=require&channel_binding=require"),
                Method::ScramPlus,
                &encrypted,
                None,
            ),
            (
                url("db", "?require_auth=scram-sha-256"),
                Method::Scram,
                &plain,
                None,
            ),
            (
                url("db", "?require_auth=!password"),
                Method::Md5,
                &plain,
                Some("MD5"),
            ),
            (url("127.0.0.1", ""), Method::Password, &plain, None),
            (url("localhost", ""), Method::Md5, &plain, None),
            (url("%2Ftmp", ""), Method::Password, &plain, None),
        ] {
            let found = exposure(&settings, method, channel);
            assert_eq!(
                found.is_some(),
                expected.is_some(),
                "{settings:?}: {found:?}"
            );
            assert!(
                found
                    .unwrap_or_default()
                    .contains(expected.unwrap_or_default()),
                "{settings:?}"
            );
        }
    }
}
