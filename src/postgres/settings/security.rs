//! Parameters that limit what a server may request from a client, with libpq's names and meanings
//! (PostgreSQL manual, "Parameter Key Words").

use super::fault::UrlFault;

/// Binding of the authentication to the TLS channel (`channel_binding`): SCRAM-SHA-256-PLUS with
/// `tls-server-end-point` (RFC 5929).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    Disable,
    /// Used if the server offers it.
    #[default]
    Prefer,
    /// A server is refused unless it proves that it is the endpoint of the TLS channel.
    Require,
}

/// Authentication method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// The server requests nothing: `trust`, `peer`, or a client certificate.
    None,
    /// The password in clear text.
    Password,
    Md5,
    Scram,
    /// SCRAM with channel binding. `require_auth` treats it as `scram-sha-256`.
    ScramPlus,
}

/// The methods that the client accepts (`require_auth`). Defaults to all, as in libpq.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequireAuth(Option<Vec<String>>);

const METHODS: [&str; 7] = [
    "password",
    "md5",
    "gss",
    "sspi",
    "scram-sha-256",
    "oauth",
    "none",
];

impl ChannelBinding {
    pub(super) fn parse(text: &str) -> Result<Self, UrlFault> {
        match text {
            "disable" => Ok(Self::Disable),
            "prefer" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            other => Err(UrlFault::ChannelBinding(other.to_owned())),
        }
    }
}

impl Method {
    /// Returns libpq's name of the method.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Password => "password",
            Self::Md5 => "md5",
            Self::Scram | Self::ScramPlus => "scram-sha-256",
        }
    }
}

impl RequireAuth {
    /// Parses `scram-sha-256,none` or `!password,!md5`. Either all methods have a `!` or none has.
    pub(super) fn parse(text: &str) -> Result<Self, UrlFault> {
        let words: Vec<&str> = text.split(',').map(str::trim).collect();
        let negated = words.iter().filter(|word| word.starts_with('!')).count();
        if negated != 0 && negated != words.len() {
            return Err(UrlFault::MixedMethods);
        }
        let named: Vec<&str> = words
            .iter()
            .map(|word| word.trim_start_matches('!'))
            .collect();
        if let Some(unknown) = named.iter().find(|word| !METHODS.contains(word)) {
            return Err(UrlFault::Method {
                method: (*unknown).to_owned(),
                known: METHODS.join(", "),
            });
        }
        let accepted = METHODS
            .into_iter()
            .filter(|method| named.contains(method) == (negated == 0));
        Ok(Self(Some(accepted.map(str::to_owned).collect())))
    }

    /// Returns `true` if a server may use this method.
    pub(crate) fn accepts(&self, method: Method) -> bool {
        self.0
            .as_ref()
            .is_none_or(|accepted| accepted.iter().any(|name| name == method.name()))
    }

    /// Returns `true` if `require_auth` is set.
    pub(crate) fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the accepted methods, for messages.
    pub(crate) fn list(&self) -> String {
        self.0.as_deref().unwrap_or_default().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_methods_are_those_that_libpq_accepts() {
        use Method::{Md5, None, Password, Scram, ScramPlus};
        let all = [None, Password, Md5, Scram, ScramPlus];
        let accepted = |text: &str| {
            let require =
                RequireAuth::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            all.into_iter()
                .filter(|method| require.accepts(*method))
                .collect::<Vec<_>>()
        };
        assert_eq!(accepted("scram-sha-256"), [Scram, ScramPlus]);
        assert_eq!(accepted("scram-sha-256, none"), [None, Scram, ScramPlus]);
        assert_eq!(accepted("!password,!md5"), [None, Scram, ScramPlus]);
        assert_eq!(accepted("gss"), []);
        assert!(
            all.into_iter()
                .all(|method| RequireAuth::default().accepts(method))
        );
        for text in ["scram", "password,!md5", "", "scram-sha-256,"] {
            assert!(RequireAuth::parse(text).is_err(), "{text}");
        }
    }
}
