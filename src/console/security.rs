//! Decisions about a request: is the client allowed, and did the page of this console send it?
//!
//! | attack | prevented by |
//! |---|---|
//! | a web page reads the console through a DNS name that it owns (DNS rebinding) | `Host` |
//! | a web page submits a form to the console (CSRF) | `Origin`, `Sec-Fetch-Site`, a token |
//! | a stored event contains HTML or script | escaping, and the Content-Security-Policy |
//! | another page shows the console in a frame | `frame-ancestors`, `X-Frame-Options` |
//! | a password is guessed | length of secrets, and a pause after each wrong one |
//!
//! Credentials are sent with HTTP basic authentication or as a bearer token. The name of the user
//! only appears in the log.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use ring::rand::SystemRandom;

/// Minimum length of a secret. Together with the pause after a wrong one, guessing is hopeless.
const SECRET_CHARACTERS_MIN: usize = 12;

/// Pause after wrong credentials.
const WRONG_PAUSE: Duration = Duration::from_secs(1);

/// The user of a token without a name.
const TOKEN_USER: &str = "token";

/// The Content-Security-Policy. Style, script, forms and streams come from this server alone, and
/// nothing is inline.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
                      connect-src 'self'; img-src 'self'; form-action 'self'; \
                      frame-ancestors 'none'; base-uri 'none'";

/// A user and the secret. Without a name, the secret is a token for any user.
pub(crate) struct Credential {
    pub(crate) user: Option<String>,
    pub(crate) secret: String,
}

/// The way in which the console is reachable.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exposure {
    /// `host:port` of the listener.
    pub(crate) address: String,
    pub(crate) allow_actions: bool,
    /// The operator accepts an address beyond loopback without authentication.
    pub(crate) is_insecure: bool,
    /// Further host names under which browsers reach the console.
    pub(crate) hosts: Vec<String>,
}

/// Error of the access options.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccessError {
    #[error(
        "--allow-actions requires authentication\n  -> name a file with a secret: \
         --console-token-file, or --console-users-file"
    )]
    ActionsWithoutAuthentication,
    #[error(
        "{address} can be reached from other machines, and the console has no authentication\n  \
         -> listen on 127.0.0.1, or name a file with a secret (--console-token-file or \
         --console-users-file), or accept it with --insecure-listen"
    )]
    OpenToOthers { address: String },
    #[error(
        "the secret of {user} has less than {SECRET_CHARACTERS_MIN} characters\n  -> create one, \
         for instance with: openssl rand -hex 24"
    )]
    ShortSecret { user: String },
    #[error("the operating system provides no random numbers")]
    NoRandomness,
}

/// Checks who may see and change something.
pub(crate) struct Access {
    users: Vec<(Option<String>, hmac::Tag)>,
    /// Random key of this process, for tags of secrets and for tokens of forms.
    key: hmac::Key,
    allow_actions: bool,
    hosts: Vec<String>,
}

/// The user of a request. `None` without authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User(Option<String>);

/// Reason why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    Host,
    Missing,
    Wrong,
    OtherOrigin,
}

impl Access {
    /// Checks the combination of options.
    ///
    /// # Errors
    ///
    /// Returns [`AccessError`] with the remedy.
    pub(crate) fn new(
        exposure: Exposure,
        credentials: Vec<Credential>,
    ) -> Result<Self, AccessError> {
        if exposure.allow_actions && credentials.is_empty() {
            return Err(AccessError::ActionsWithoutAuthentication);
        }
        let is_open = credentials.is_empty() && !exposure.is_insecure;
        if is_open && !is_loopback(&exposure.address) {
            return Err(AccessError::OpenToOthers {
                address: exposure.address,
            });
        }
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| AccessError::NoRandomness)?;
        let mut users = Vec::new();
        for Credential { user, secret } in credentials {
            if secret.chars().count() < SECRET_CHARACTERS_MIN {
                let user = user.unwrap_or_else(|| TOKEN_USER.into());
                return Err(AccessError::ShortSecret { user });
            }
            users.push((user, hmac::sign(&key, secret.as_bytes())));
        }
        Ok(Self {
            users,
            key,
            allow_actions: exposure.allow_actions,
            hosts: exposure.hosts,
        })
    }

    pub(super) fn allows_actions(&self) -> bool {
        self.allow_actions
    }

    /// Returns the user of a request.
    ///
    /// # Errors
    ///
    /// Returns the reason of a refusal.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<User, Denial> {
        if self.users.is_empty() {
            // A page that owns a DNS name sends no credentials for it, so only a console without
            // authentication depends on the name.
            return match text(headers, header::HOST).is_some_and(|host| self.is_own(host)) {
                true => Ok(User(None)),
                false => Err(Denial::Host),
            };
        }
        let (user, secret) = presented(headers).ok_or(Denial::Missing)?;
        let is_right = |(name, tag): &&(Option<String>, hmac::Tag)| {
            let is_secret = hmac::verify(&self.key, secret.as_bytes(), tag.as_ref()).is_ok();
            is_secret && name.as_ref().is_none_or(|name| Some(name) == user.as_ref())
        };
        match self.users.iter().find(is_right) {
            Some((Some(name), _)) => Ok(User(Some(name.clone()))),
            Some((None, _)) => {
                let user = user.filter(|user| !user.is_empty());
                Ok(User(Some(user.unwrap_or_else(|| TOKEN_USER.into()))))
            }
            None => Err(Denial::Wrong),
        }
    }

    /// Checks that a page of this console sent a form: the browser's headers.
    ///
    /// # Errors
    ///
    /// Returns [`Denial::OtherOrigin`].
    pub(super) fn require_same_origin(headers: &HeaderMap) -> Result<(), Denial> {
        let site = text(headers, HeaderName::from_static("sec-fetch-site"));
        let origin = text(headers, header::ORIGIN)
            .and_then(|origin| origin.split_once("://"))
            .map(|(_, authority)| authority);
        let host = text(headers, header::HOST);
        let is_same = origin.is_some() && origin == host;
        match is_same && site.is_none_or(|site| site == "same-origin") {
            true => Ok(()),
            false => Err(Denial::OtherOrigin),
        }
    }

    /// Returns the token of the forms of a user.
    pub(super) fn form_token(&self, user: &User) -> String {
        let tag = hmac::sign(&self.key, &form_text(user));
        STANDARD.encode(tag.as_ref())
    }

    /// Returns `true` if a form contains the token of its user.
    pub(super) fn is_form_token(&self, user: &User, token: &str) -> bool {
        STANDARD
            .decode(token)
            .is_ok_and(|tag| hmac::verify(&self.key, &form_text(user), &tag).is_ok())
    }

    /// Returns `true` if browsers reach only this machine or the operator's names by this `Host`.
    /// A page cannot own an IP address.
    fn is_own(&self, host: &str) -> bool {
        let name = without_port(host);
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok()
            || self.hosts.iter().any(|own| own.eq_ignore_ascii_case(name))
    }
}

impl User {
    /// Returns the name for the log and the page.
    pub(super) fn name(&self) -> &str {
        self.0.as_deref().unwrap_or("anonymous")
    }
}

impl Denial {
    /// Responds to a refused request.
    pub(super) async fn response(self) -> Response {
        if self == Self::Wrong {
            tokio::time::sleep(WRONG_PAUSE).await;
        }
        let (code, text) = match self {
            Self::Host => (
                StatusCode::MISDIRECTED_REQUEST,
                "This host name is unknown to the console. Open it by its IP address or as \
                 localhost, or start it with --allow-host NAME.\n",
            ),
            Self::Missing | Self::Wrong => (
                StatusCode::UNAUTHORIZED,
                "The console requires a user and a password, or a token as the password.\n",
            ),
            Self::OtherOrigin => (
                StatusCode::FORBIDDEN,
                "The form was not sent by a page of this console. Open the page again.\n",
            ),
        };
        let mut response = (code, text).into_response();
        if code == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Basic realm=\"Tidings console\", charset=\"UTF-8\""),
            );
        }
        response
    }
}

/// Adds the headers that every response has.
pub(super) fn protect(headers: &mut HeaderMap) {
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // With `no-referrer`, browsers would send `Origin: null` with a form.
        (header::REFERRER_POLICY, "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for name in ["cross-origin-opener-policy", "cross-origin-resource-policy"] {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static("same-origin"),
        );
    }
    // Pages contain data of events, so no cache keeps them.
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
}

/// Returns the user and the secret of a request. A bearer token has no user.
fn presented(headers: &HeaderMap) -> Option<(Option<String>, String)> {
    let (scheme, value) = text(headers, header::AUTHORIZATION)?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some((None, value.trim().to_owned()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(value.trim()).ok()?).ok()?;
    let (user, secret) = decoded.split_once(':')?;
    Some((Some(user.to_owned()), secret.to_owned()))
}

fn form_text(user: &User) -> Vec<u8> {
    format!("form of {}", user.name()).into_bytes()
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn without_port(host: &str) -> &str {
    if let Some(inner) = host.strip_prefix('[') {
        return inner.split(']').next().unwrap_or_default();
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// Returns `true` if only this machine reaches the address.
fn is_loopback(address: &str) -> bool {
    address
        .parse::<SocketAddr>()
        .map(|address| address.ip().is_loopback())
        .unwrap_or_else(|_| without_port(address).eq_ignore_ascii_case("localhost"))
}

// === impl Debug ===

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let users: Vec<_> = self.users.iter().map(|(user, _)| user).collect();
        f.debug_struct("Access")
            .field("users", &users)
            .field("allow_actions", &self.allow_actions)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "correct horse battery";

    fn exposure(address: &str, allow_actions: bool) -> Exposure {
        Exposure {
            address: address.into(),
            allow_actions,
            ..Exposure::default()
        }
    }

    fn credentials() -> Vec<Credential> {
        [(Some("ada"), SECRET), (None, "a token of the team")]
            .map(|(user, secret)| Credential {
                user: user.map(str::to_owned),
                secret: secret.into(),
            })
            .into()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                let value = HeaderValue::from_str(value).expect("a value");
                (HeaderName::from_static(name), value)
            })
            .collect()
    }

    fn basic(user: &str, secret: &str) -> HeaderMap {
        let value = format!("Basic {}", STANDARD.encode(format!("{user}:{secret}")));
        headers(&[("authorization", &value)])
    }

    #[test]
    fn actions_and_open_addresses_require_authentication() {
        use AccessError::{ActionsWithoutAuthentication, OpenToOthers, ShortSecret};
        let refusal = |exposure, credentials| Access::new(exposure, credentials).err();
        for address in ["127.0.0.1:9465", "[::1]:9465", "localhost:9465"] {
            assert_eq!(refusal(exposure(address, false), vec![]), None, "{address}");
            assert_eq!(
                refusal(exposure(address, true), vec![]),
                Some(ActionsWithoutAuthentication)
            );
        }
        for address in ["0.0.0.0:9465", "[::]:9465", "console.example.com:80"] {
            assert!(
                matches!(
                    refusal(exposure(address, false), vec![]),
                    Some(OpenToOthers { .. })
                ),
                "{address}"
            );
            assert_eq!(refusal(exposure(address, true), credentials()), None);
            let insecure = Exposure {
                is_insecure: true,
                ..exposure(address, false)
            };
            assert_eq!(refusal(insecure, vec![]), None);
        }
        let short = Credential {
            user: Some("ada".into()),
            secret: "short".into(),
        };
        let refused = refusal(exposure("127.0.0.1:1", true), vec![short]);
        assert_eq!(refused, Some(ShortSecret { user: "ada".into() }));
    }

    #[test]
    fn without_authentication_only_own_host_names_are_served() {
        let exposure = Exposure {
            hosts: vec!["Console.example.com".into()],
            ..exposure("127.0.0.1:9465", false)
        };
        let access = Access::new(exposure, vec![]).expect("valid options");
        let admit = |host: &str| access.admit(&headers(&[("host", host)])).is_ok();
        for host in [
            "127.0.0.1:9465",
            "localhost",
            "[::1]:9465",
            "10.0.0.7",
            "console.example.com",
        ] {
            assert!(admit(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9465",
            "localhost.evil.example",
            "",
        ] {
            assert!(!admit(host), "{host}");
        }
        assert_eq!(access.admit(&HeaderMap::new()), Err(Denial::Host));
    }

    #[test]
    fn a_user_is_admitted_only_with_the_own_secret() {
        let access = Access::new(exposure("0.0.0.0:1", true), credentials()).expect("valid");
        let user = |name: &str| Ok(User(Some(name.to_owned())));
        assert_eq!(access.admit(&basic("ada", SECRET)), user("ada"));
        assert_eq!(access.admit(&basic("eve", SECRET)), Err(Denial::Wrong));
        assert_eq!(access.admit(&basic("ada", "")), Err(Denial::Wrong));
        assert_eq!(
            access.admit(&basic("bob", "a token of the team")),
            user("bob")
        );
        let bearer = |token: &str| headers(&[("authorization", &format!("Bearer {token}"))]);
        assert_eq!(access.admit(&bearer("a token of the team")), user("token"));
        assert_eq!(access.admit(&bearer(SECRET)), Err(Denial::Wrong));
        assert_eq!(access.admit(&HeaderMap::new()), Err(Denial::Missing));
        assert!(!format!("{access:?}").contains(SECRET));
    }

    #[test]
    fn a_form_of_another_page_or_another_user_is_refused() {
        let from = |pairs: &[(&'static str, &str)]| {
            let host = [("host", "localhost:9465")];
            Access::require_same_origin(&headers(&[&host[..], pairs].concat()))
        };
        assert_eq!(from(&[("origin", "http://localhost:9465")]), Ok(()));
        let same = ("sec-fetch-site", "same-origin");
        assert_eq!(from(&[("origin", "http://localhost:9465"), same]), Ok(()));
        for pairs in [
            &[][..],
            &[same],
            &[("origin", "null"), same],
            &[("origin", "http://localhost:80"), same],
            &[("origin", "http://evil.example"), same],
            &[
                ("origin", "http://localhost:9465"),
                ("sec-fetch-site", "same-site"),
            ],
            &[
                ("origin", "http://localhost:9465"),
                ("sec-fetch-site", "cross-site"),
            ],
        ] {
            assert_eq!(from(pairs), Err(Denial::OtherOrigin), "{pairs:?}");
        }
        let access = Access::new(exposure("127.0.0.1:1", true), credentials()).expect("valid");
        let (ada, bob) = (User(Some("ada".into())), User(Some("bob".into())));
        let token = access.form_token(&ada);
        assert!(access.is_form_token(&ada, &token) && !access.is_form_token(&bob, &token));
        assert!(!access.is_form_token(&ada, "") && !access.is_form_token(&ada, "?"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_secret_delays_the_response() {
        let began = tokio::time::Instant::now();
        let response = Denial::Wrong.response().await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(began.elapsed() >= WRONG_PAUSE, "{:?}", began.elapsed());
    }
}
