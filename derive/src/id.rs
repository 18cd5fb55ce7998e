//! Generation of the body of `aggregate_id`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Error, Expr, Fields, Ident, LitStr, Member, Result, Type};

use crate::suggest::did_you_mean;

/// Returns the id of a struct or of any enum variant, from an expression over `self`.
pub(crate) fn from_expression(expression: &Expr) -> TokenStream {
    // The value must be `Display`. With the span of the expression, the compiler reports a
    // violation there.
    quote_spanned! {expression.span()=>
        ::std::borrow::Cow::Owned(::std::string::ToString::to_string(&(#expression)))
    }
}

/// Returns a match arm that takes the id from a field of `constructor`, a struct or a variant.
pub(crate) fn arm_from_field(
    owner: &Ident,
    constructor: &TokenStream,
    fields: &Fields,
    name: &LitStr,
    help: &str,
) -> Result<TokenStream> {
    let (member, ty) = find(fields, name).ok_or_else(|| {
        let names = fields
            .members()
            .map(|member| member_name(&member))
            .collect::<Vec<_>>();
        let suggestion = did_you_mean(&name.value(), names.iter().map(String::as_str));
        Error::new(
            name.span(),
            format!(
                "`{owner}` has no field `{}`{suggestion}{help}",
                name.value()
            ),
        )
    })?;
    let id = format_ident!("__id", span = ty.span());
    let text = quote_spanned!(ty.span()=> ::std::string::ToString::to_string(#id));
    Ok(quote!(#constructor { #member: #id, .. } => ::std::borrow::Cow::Owned(#text)))
}

fn find<'a>(fields: &'a Fields, name: &LitStr) -> Option<(Member, &'a Type)> {
    let wanted = name.value();
    fields
        .members()
        .zip(fields)
        .find(|(member, _)| member_name(member) == wanted)
        .map(|(member, field)| (member, &field.ty))
}

fn member_name(member: &Member) -> String {
    match member {
        Member::Named(name) => name.unraw().to_string(),
        Member::Unnamed(index) => index.index.to_string(),
    }
}
