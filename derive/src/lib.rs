//! Macros `#[derive(DomainEvent)]` and `#[debug_handler]` of [tidings](https://docs.rs/tidings).
//! Use them through that crate, which documents them.

mod attribute;
mod expand;
mod handler;
mod id;
mod suggest;

use proc_macro::TokenStream;
use syn::{DeriveInput, ItemFn, parse_macro_input};

/// Derives `DomainEvent`. The trait of the same name documents the keys of `#[event(…)]`.
#[proc_macro_derive(DomainEvent, attributes(event))]
pub fn derive_domain_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::expand(&input)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

/// Checks a handler at its definition. `tidings::debug_handler` documents it.
#[proc_macro_attribute]
pub fn debug_handler(options: TokenStream, function: TokenStream) -> TokenStream {
    let options = parse_macro_input!(options as handler::Options);
    let function = parse_macro_input!(function as ItemFn);
    handler::expand(options, &function).into()
}
