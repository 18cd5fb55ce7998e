//! `#[derive(DomainEvent)]` for [tidings](https://docs.rs/tidings): use it by that crate's name, which documents it at the trait.

mod attribute;
mod expand;
mod id;
mod suggest;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Derives `DomainEvent`; the trait of the same name documents the keys of `#[event(…)]`.
#[proc_macro_derive(DomainEvent, attributes(event))]
pub fn derive_domain_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::expand(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}
