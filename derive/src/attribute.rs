//! Parser of `#[event(…)]`.

use proc_macro2::Span;
use syn::ext::IdentExt;
use syn::parse::ParseStream;
use syn::{Attribute, Error, Expr, ExprLit, Ident, Lit, LitInt, LitStr, Result, Token, Type};

use crate::suggest::did_you_mean;

/// Keys on a struct or an enum.
pub(crate) const KEYS: [&str; 6] = ["aggregate", "id", "type", "version", "codec", "upcast"];
/// Keys on a variant.
pub(crate) const VARIANT_KEYS: [&str; 2] = ["type", "id"];

/// Source of the aggregate id.
pub(crate) enum IdSource {
    /// `id = "order_id"`: a field.
    Field(LitStr),
    /// `id = self.key()`: an expression over `self`.
    Expression(Box<Expr>),
}

/// `upcast(from = 1, with = path)`: a function that converts the payload of one version to that of
/// the next.
pub(crate) struct Upcast {
    pub(crate) from: LitInt,
    pub(crate) with: Expr,
}

/// Contents of `#[event(…)]`.
#[derive(Default)]
pub(crate) struct EventAttribute {
    /// Position of the attribute. `None` if there is none.
    pub(crate) span: Option<Span>,
    pub(crate) aggregate: Option<LitStr>,
    pub(crate) id: Option<IdSource>,
    pub(crate) event_type: Option<LitStr>,
    pub(crate) version: Option<LitInt>,
    pub(crate) codec: Option<Type>,
    pub(crate) upcasts: Vec<Upcast>,
}

impl EventAttribute {
    /// Parses every `#[event(…)]` among the attributes. `keys` are the keys allowed at this place.
    pub(crate) fn read(attributes: &[Attribute], keys: &[&str]) -> Result<Self> {
        let mut event = Self::default();
        for attribute in attributes
            .iter()
            .filter(|attribute| attribute.path().is_ident("event"))
        {
            event.span = Some(
                attribute
                    .path()
                    .get_ident()
                    .map_or_else(Span::call_site, Ident::span),
            );
            attribute.parse_args_with(|input: ParseStream<'_>| {
                while !input.is_empty() {
                    event.read_key(input, keys)?;
                    if !input.is_empty() {
                        input.parse::<Token![,]>()?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(event)
    }

    fn read_key(&mut self, input: ParseStream<'_>, keys: &[&str]) -> Result<()> {
        let key = input.call(Ident::parse_any)?;
        let name = key.unraw().to_string();
        if !keys.contains(&name.as_str()) {
            return Err(Error::new(key.span(), unknown_key(&name, keys)));
        }
        if name == "upcast" {
            self.upcasts.push(upcast(&key, input)?);
            return Ok(());
        }
        if !input.peek(Token![=]) {
            return Err(Error::new(
                key.span(),
                format!("`{name}` needs a value: `{name} = …`"),
            ));
        }
        input.parse::<Token![=]>()?;
        match name.as_str() {
            "aggregate" => once(&mut self.aggregate, &key, aggregate_name(input)?),
            "id" => once(&mut self.id, &key, id_source(input)?),
            "type" => once(&mut self.event_type, &key, type_name(input)?),
            "version" => once(&mut self.version, &key, version_number(input)?),
            "codec" => once(&mut self.codec, &key, input.parse()?),
            _ => unreachable!("every known key is read above"),
        }
    }
}

fn unknown_key(name: &str, keys: &[&str]) -> String {
    if KEYS.contains(&name) {
        return format!("`{name}` is not allowed on a variant: move it to the enum");
    }
    let known = keys
        .iter()
        .map(|key| format!("`{key}`"))
        .collect::<Vec<_>>()
        .join(", ");
    // Names of these keys in other libraries.
    let suggestion = match name {
        "aggregate_id" | "key" if keys.contains(&"id") => " (did you mean `id`?)".to_owned(),
        "name" | "ty" | "event_type" | "rename" => " (did you mean `type`?)".to_owned(),
        "aggregate_type" | "topic" if keys.contains(&"aggregate") => {
            " (did you mean `aggregate`?)".to_owned()
        }
        _ => did_you_mean(name, keys.iter().copied()),
    };
    format!("unknown key `{name}`{suggestion}; the keys allowed here are {known}")
}

fn once<T>(slot: &mut Option<T>, key: &Ident, value: T) -> Result<()> {
    if slot.replace(value).is_some() {
        return Err(Error::new(
            key.span(),
            format!("`{}` is set twice", key.unraw()),
        ));
    }
    Ok(())
}

fn aggregate_name(input: ParseStream<'_>) -> Result<LitStr> {
    let name: LitStr = input.parse()?;
    let text = name.value();
    let fits_a_topic = (1..=249).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !fits_a_topic {
        let reason = "the aggregate becomes part of a Kafka topic name: use 1 to 249 letters, \
             digits, `.`, `_` and `-`";
        return Err(Error::new(name.span(), reason));
    }
    Ok(name)
}

fn type_name(input: ParseStream<'_>) -> Result<LitStr> {
    let name: LitStr = input.parse()?;
    let text = name.value();
    if !(1..=255).contains(&text.len()) || text.chars().any(char::is_control) {
        return Err(Error::new(
            name.span(),
            "an event type has 1 to 255 bytes and no control characters",
        ));
    }
    Ok(name)
}

fn version_number(input: ParseStream<'_>) -> Result<LitInt> {
    let version: LitInt = input.parse()?;
    match version.base10_parse::<i32>() {
        Ok(1..) => Ok(version),
        _ => Err(Error::new(version.span(), "versions start at 1")),
    }
}

fn upcast(key: &Ident, input: ParseStream<'_>) -> Result<Upcast> {
    let shape = "the syntax of `upcast` is `upcast(from = 1, with = function)`";
    if !input.peek(syn::token::Paren) {
        return Err(Error::new(key.span(), shape));
    }
    let content;
    syn::parenthesized!(content in input);
    let (mut from, mut with) = (None, None);
    while !content.is_empty() {
        let name = content.call(Ident::parse_any)?;
        content.parse::<Token![=]>()?;
        match name.to_string().as_str() {
            "from" => once(&mut from, &name, version_number(&content)?)?,
            "with" => once(&mut with, &name, content.parse()?)?,
            _ => return Err(Error::new(name.span(), shape)),
        }
        if !content.is_empty() {
            content.parse::<Token![,]>()?;
        }
    }
    match (from, with) {
        (Some(from), Some(with)) => Ok(Upcast { from, with }),
        _ => Err(Error::new(key.span(), shape)),
    }
}

fn id_source(input: ParseStream<'_>) -> Result<IdSource> {
    Ok(match input.parse()? {
        Expr::Lit(ExprLit {
            lit: Lit::Str(field),
            ..
        }) => IdSource::Field(field),
        Expr::Lit(ExprLit { lit, .. }) => {
            return Err(Error::new(
                lit.span(),
                "`id` must be a field name in quotes (`id = \"order_id\"`) or an expression over \
                 `self`",
            ));
        }
        Expr::Path(path) if path.path.get_ident().is_some_and(|name| name != "self") => {
            let name = path
                .path
                .get_ident()
                .map(ToString::to_string)
                .unwrap_or_default();
            return Err(Error::new_spanned(
                path,
                format!(
                    "put the field name in quotes: `id = \"{name}\"`, or write `id = self.{name}`"
                ),
            ));
        }
        expression => IdSource::Expression(Box::new(expression)),
    })
}
