//! Parts of a database URL, as text.

use percent_encoding::percent_decode_str;
use url::Url;

use super::{fault::UrlFault, parameters};

/// Values of the URL and the environment, as text. The URL takes precedence.
#[derive(Default)]
pub(super) struct Given {
    pub(super) host: Option<String>,
    pub(super) port: Option<String>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: Option<String>,
    pub(super) ssl_mode: Option<String>,
    pub(super) ssl_root_cert: Option<String>,
    pub(super) ssl_cert: Option<String>,
    pub(super) ssl_key: Option<String>,
    pub(super) ssl_negotiation: Option<String>,
    pub(super) ssl_sni: Option<String>,
    pub(super) channel_binding: Option<String>,
    pub(super) require_auth: Option<String>,
    pub(super) keepalives: Option<String>,
    pub(super) passfile: Option<String>,
    pub(super) application_name: Option<String>,
    pub(super) options: String,
    pub(super) connect_timeout: Option<String>,
}

/// Splits the URL into its parts.
pub(super) fn read_url(text: &str, faults: &mut Vec<String>) -> Result<Given, UrlFault> {
    let url = parse(text)?;
    let path = url.path().strip_prefix('/').unwrap_or(url.path());
    let mut given = Given {
        host: decoded(
            url.host_str().unwrap_or_default().trim_matches(['[', ']']),
            faults,
        ),
        port: url.port().map(|port| port.to_string()),
        user: decoded(url.username(), faults),
        password: decoded(url.password().unwrap_or_default(), faults),
        database: decoded(path, faults),
        ..Given::default()
    };
    given.read_parameters(url.query().unwrap_or_default(), faults);
    Ok(given)
}

/// Parses the URL, and refuses one in which a part of the password was taken for another part.
fn parse(text: &str) -> Result<Url, UrlFault> {
    let url = match Url::parse(text.trim()) {
        Ok(url) if matches!(url.scheme(), "postgres" | "postgresql") => url,
        Ok(_) | Err(url::ParseError::RelativeUrlWithoutBase) => {
            return Err(UrlFault::Scheme);
        }
        Err(url::ParseError::EmptyHost) => return Err(UrlFault::NoHost),
        Err(error) => return Err(UrlFault::Syntax(error)),
    };
    // In such a URL, a character of the password has ended the password too early, so that the rest
    // of it would be taken for another part.
    let path = url.path().strip_prefix('/').unwrap_or(url.path());
    if url.fragment().is_some()
        || path.contains(['/', '@'])
        || url.query().is_some_and(|query| query.contains('@'))
    {
        return Err(UrlFault::Misplaced);
    }
    Ok(url)
}

impl Given {
    /// Reads the parameters after `?`.
    fn read_parameters(&mut self, query: &str, faults: &mut Vec<String>) {
        let mut has_password = false;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value, faults);
            match name {
                "host" => self.host = value,
                "port" => self.port = value,
                "user" => self.user = value,
                "password" => {
                    has_password = true;
                    self.password = value;
                }
                "dbname" => self.database = value,
                "sslmode" => self.ssl_mode = value,
                "sslrootcert" => self.ssl_root_cert = value,
                "sslcert" => self.ssl_cert = value,
                "sslkey" => self.ssl_key = value,
                "sslnegotiation" => self.ssl_negotiation = value,
                "sslsni" => self.ssl_sni = value,
                "channel_binding" => self.channel_binding = value,
                "require_auth" => self.require_auth = value,
                "passfile" => self.passfile = value,
                "application_name" => self.application_name = value,
                "fallback_application_name" => {
                    self.application_name = self.application_name.take().or(value)
                }
                "options" => self.options = value.unwrap_or_default(),
                "connect_timeout" => self.connect_timeout = value,
                known if parameters::KNOWN.contains(&known) => {
                    let value = value.unwrap_or_default();
                    faults.extend(parameters::fault(known, &value));
                    if known == "keepalives" {
                        self.keepalives = Some(value);
                    }
                }
                // The rest may belong to the password, so it is not quoted.
                _ if has_password => faults.push(
                    "an unknown parameter follows password; write & in a password as %26".into(),
                ),
                unknown => faults.push(parameters::unknown(unknown)),
            }
        }
    }
}

fn decoded(text: &str, faults: &mut Vec<String>) -> Option<String> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Some(text.into_owned()).filter(|text| !text.is_empty()),
        Err(_) => {
            faults.push("a percent-encoded part of the URL is not UTF-8".into());
            None
        }
    }
}
