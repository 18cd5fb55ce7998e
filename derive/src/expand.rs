//! Expansion of `#[derive(DomainEvent)]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::ext::IdentExt;
use syn::{
    Attribute, Data, DataEnum, DeriveInput, Error, Fields, GenericParam, Ident, LitStr, Result,
    Variant, parse_quote,
};

use crate::attribute::{EventAttribute, IdSource, KEYS, VARIANT_KEYS};
use crate::id;

/// Parts of the `impl` that differ between a struct and an enum.
struct Shape {
    types: Vec<LitStr>,
    event_type: TokenStream,
    aggregate_id: TokenStream,
}

/// Returns the `impl DomainEvent` of a type, or the first error in its attributes.
pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    refuse_lifetimes(input)?;
    let event = EventAttribute::read(&input.attrs, &KEYS)?;
    let missing = |key: &str| {
        let example = "#[event(aggregate = \"order\", id = \"order_id\")]";
        match event.span {
            Some(span) => Error::new(span, format!("`{key} = …` is missing, as in `{example}`")),
            None => Error::new(
                input.ident.span(),
                format!(
                    "`{}` has no `#[event(…)]` attribute: add `{example}`",
                    input.ident
                ),
            ),
        }
    };
    let aggregate = event
        .aggregate
        .as_ref()
        .ok_or_else(|| missing("aggregate"))?;
    check_upcasts(&event)?;
    let shape = match &input.data {
        Data::Struct(data) => struct_shape(
            &input.ident,
            &data.fields,
            &event,
            event.id.as_ref().ok_or_else(|| missing("id"))?,
        )?,
        Data::Enum(data) => enum_shape(&input.ident, data, &event, &missing)?,
        Data::Union(data) => {
            return Err(Error::new(
                data.union_token.span,
                "a union cannot be a domain event: use a struct or an enum",
            ));
        }
    };
    Ok(implementation(input, &event, aggregate, &shape))
}

fn implementation(
    input: &DeriveInput,
    event: &EventAttribute,
    aggregate: &LitStr,
    shape: &Shape,
) -> TokenStream {
    let codec = event
        .codec
        .as_ref()
        .map_or_else(|| quote!(::tidings::event::Json), |codec| quote!(#codec));
    let version = event
        .version
        .as_ref()
        .map(|version| quote!(const VERSION: u32 = #version;));
    let upcast = upcast(event);
    let Shape {
        types,
        event_type,
        aggregate_id,
    } = shape;
    let name = &input.ident;
    let mut generics = input.generics.clone();
    if !generics.params.is_empty() {
        // The macro cannot check the trait's requirements for a type parameter, so the `impl` is
        // bounded by them.
        let clause = generics.make_where_clause();
        clause
            .predicates
            .push(parse_quote!(#codec: ::tidings::event::Codec<Self>));
        clause
            .predicates
            .push(parse_quote!(Self: ::std::marker::Send + ::std::marker::Sync + 'static));
    }
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #impl_generics ::tidings::event::DomainEvent for #name #type_generics #where_clause {
            type Codec = #codec;
            const AGGREGATE: &'static str = #aggregate;
            const TYPES: &'static [&'static str] = &[#(#types),*];
            #version
            #upcast
            fn event_type(&self) -> &'static str {
                #event_type
            }
            fn aggregate_id(&self) -> ::std::borrow::Cow<'_, str> {
                #aggregate_id
            }
        }
    }
}

/// Returns `fn upcast`, or `None` if the event has no upcasts.
fn upcast(event: &EventAttribute) -> Option<TokenStream> {
    let arms = event.upcasts.iter().map(|upcast| {
        let (from, with) = (&upcast.from, &upcast.with);
        quote! {
            #from => ::std::option::Option::Some(
                ::tidings::event::lift::<Self, _, _>(#with, payload)
            )
        }
    });
    (!event.upcasts.is_empty()).then(|| {
        quote! {
            fn upcast(
                from: u32,
                payload: &[u8],
            ) -> ::std::option::Option<
                ::std::result::Result<::std::vec::Vec<u8>, ::tidings::event::CodecError>,
            > {
                match from {
                    #(#arms,)*
                    _ => ::std::option::Option::None,
                }
            }
        }
    })
}

fn check_upcasts(event: &EventAttribute) -> Result<()> {
    let version = event
        .version
        .as_ref()
        .map_or(Ok(1), syn::LitInt::base10_parse::<u32>)?;
    let mut seen = Vec::new();
    for upcast in &event.upcasts {
        let from = upcast.from.base10_parse::<u32>()?;
        if from >= version {
            return Err(Error::new(
                upcast.from.span(),
                format!(
                    "the event's version is {version}: an upcast must start from an older version"
                ),
            ));
        }
        if seen.contains(&from) {
            return Err(Error::new(
                upcast.from.span(),
                format!("two upcasts start from version {from}"),
            ));
        }
        seen.push(from);
    }
    // Each upcast converts to the next version. Versions below the oldest `from` may be missing,
    // but no version in between.
    for upcast in &event.upcasts {
        let next = upcast.from.base10_parse::<u32>()? + 1;
        if next < version && !seen.contains(&next) {
            return Err(Error::new(
                upcast.from.span(),
                format!(
                    "this upcast ends at version {next}, and no upcast starts from version {next}: \
                     add `upcast(from = {next}, with = …)`, so that older events reach version \
                     {version}"
                ),
            ));
        }
    }
    Ok(())
}

fn struct_shape(
    name: &Ident,
    fields: &Fields,
    event: &EventAttribute,
    source: &IdSource,
) -> Result<Shape> {
    refuse_on_fields(fields)?;
    let event_type = event.event_type.clone().unwrap_or_else(|| name_of(name));
    let aggregate_id = match source {
        IdSource::Expression(expression) => id::from_expression(expression),
        IdSource::Field(field) => {
            let arm = id::arm_from_field(name, &quote!(Self), fields, field, "")?;
            quote!(match self { #arm })
        }
    };
    Ok(Shape {
        types: vec![event_type.clone()],
        event_type: quote!(#event_type),
        aggregate_id,
    })
}

fn enum_shape(
    name: &Ident,
    data: &DataEnum,
    event: &EventAttribute,
    missing: &dyn Fn(&str) -> Error,
) -> Result<Shape> {
    if let Some(event_type) = &event.event_type {
        return Err(Error::new(
            event_type.span(),
            "`type` is not allowed on an enum: each variant is an event type, so move it to a \
             variant",
        ));
    }
    if data.variants.is_empty() {
        return Err(Error::new(
            name.span(),
            format!("`{name}` has no variants, so it cannot represent an event"),
        ));
    }
    let (mut types, mut type_arms, mut id_arms) = (Vec::<LitStr>::new(), Vec::new(), Vec::new());
    for variant in &data.variants {
        refuse_on_fields(&variant.fields)?;
        let attribute = EventAttribute::read(&variant.attrs, &VARIANT_KEYS)?;
        let event_type = attribute
            .event_type
            .clone()
            .unwrap_or_else(|| name_of(&variant.ident));
        if types
            .iter()
            .any(|other| other.value() == event_type.value())
        {
            return Err(Error::new(
                event_type.span(),
                format!("two variants have the event type {:?}", event_type.value()),
            ));
        }
        let ident = &variant.ident;
        type_arms.push(quote!(Self::#ident { .. } => #event_type));
        types.push(event_type);
        id_arms.push(variant_id_arm(
            variant,
            attribute.id.as_ref(),
            event.id.as_ref(),
            missing,
        )?);
    }
    Ok(Shape {
        types,
        event_type: quote!(match self { #(#type_arms),* }),
        aggregate_id: quote!(match self { #(#id_arms),* }),
    })
}

fn variant_id_arm(
    variant: &Variant,
    own: Option<&IdSource>,
    shared: Option<&IdSource>,
    missing: &dyn Fn(&str) -> Error,
) -> Result<TokenStream> {
    let ident = &variant.ident;
    let constructor = quote!(Self::#ident);
    match (own, shared) {
        (Some(IdSource::Field(field)), _) => {
            id::arm_from_field(ident, &constructor, &variant.fields, field, "")
        }
        (Some(IdSource::Expression(expression)), _) => Err(Error::new_spanned(
            expression,
            "on a variant, `id` must be a field name in quotes; move an expression over `self` to \
             the enum",
        )),
        (None, Some(IdSource::Expression(expression))) => {
            let id = id::from_expression(expression);
            Ok(quote!(#constructor { .. } => #id))
        }
        (None, Some(IdSource::Field(field))) => {
            // The error concerns the variant, so its span points there.
            let field = LitStr::new(&field.value(), ident.span());
            let help = ": add it, or name another field with `#[event(id = \"…\")]` on the variant";
            id::arm_from_field(ident, &constructor, &variant.fields, &field, help)
        }
        (None, None) => Err(missing("id")),
    }
}

fn name_of(ident: &Ident) -> LitStr {
    LitStr::new(&ident.unraw().to_string(), ident.span())
}

fn refuse_on_fields(fields: &Fields) -> Result<()> {
    let is_event = |attribute: &&Attribute| attribute.path().is_ident("event");
    match fields.iter().flat_map(|field| &field.attrs).find(is_event) {
        Some(attribute) => Err(Error::new_spanned(
            attribute,
            "`#[event(…)]` is not allowed on a field: name the field with `id = \"…\"` on the \
             struct, enum or variant",
        )),
        None => Ok(()),
    }
}

fn refuse_lifetimes(input: &DeriveInput) -> Result<()> {
    match input
        .generics
        .params
        .iter()
        .find(|parameter| matches!(parameter, GenericParam::Lifetime(_)))
    {
        Some(lifetime) => Err(Error::new_spanned(
            lifetime,
            "a domain event must own its data: use `String` or `Cow<'static, str>` instead of \
             `&str`",
        )),
        None => Ok(()),
    }
}
