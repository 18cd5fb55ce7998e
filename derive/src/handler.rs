//! Expansion of `#[debug_handler]`: the unchanged function, and a check of each of its parts whose
//! error points at that part.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::{
    Error, FnArg, GenericArgument, Ident, ItemFn, PathArguments, Result, ReturnType, Token, Type,
    parse_quote,
};

/// Maximum number of arguments of a handler.
const ARGUMENTS_MAX: usize = 8;

/// Options in the parentheses: `state = App`.
pub(crate) struct Options {
    state: Option<Type>,
}

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        if input.is_empty() {
            return Ok(Self { state: None });
        }
        let key: Ident = input.parse()?;
        if key != "state" {
            return Err(Error::new(
                key.span(),
                "unknown key: the only key is `state = YourState`",
            ));
        }
        input.parse::<Token![=]>()?;
        let state = input.parse()?;
        input.parse::<Option<Token![,]>>()?;
        Ok(Self { state: Some(state) })
    }
}

/// Returns the function with its checks, or with the reason why it cannot be a handler.
pub(crate) fn expand(options: Options, function: &ItemFn) -> TokenStream {
    let checks = arguments(function).and_then(|types| Ok((state(options, &types)?, types)));
    let checks = checks.map_or_else(Error::into_compile_error, |(state, types)| {
        checks_of(function, &types, &state)
    });
    quote!(#function #checks)
}

/// Returns the types of the arguments.
fn arguments(function: &ItemFn) -> Result<Vec<&Type>> {
    let signature = &function.sig;
    if signature.asyncness.is_none() {
        return Err(Error::new(
            signature.fn_token.span,
            "a handler must be an async function: write `async fn`",
        ));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new(
            signature.generics.span(),
            "a generic function cannot be checked: name the types, or remove `#[debug_handler]`",
        ));
    }
    if signature.inputs.is_empty() {
        return Err(Error::new(
            signature.paren_token.span.join(),
            "the first argument of a handler must be its event: `Event<E>`, `Batch<E>` or \
             `Tombstone<E>`",
        ));
    }
    if let Some(ninth) = signature.inputs.iter().nth(ARGUMENTS_MAX) {
        return Err(Error::new(
            ninth.span(),
            "a handler has at most eight arguments: combine several in a type that implements \
             `FromDelivery`",
        ));
    }
    signature.inputs.iter().map(argument_type).collect()
}

fn argument_type(argument: &FnArg) -> Result<&Type> {
    match argument {
        FnArg::Typed(typed) => Ok(&typed.ty),
        FnArg::Receiver(receiver) => Err(Error::new(
            receiver.span(),
            "a handler must be a function without `self`",
        )),
    }
}

/// Returns the state type from the options, or the `T` of the only `State<T>`, or `()`.
fn state(options: Options, arguments: &[&Type]) -> Result<Type> {
    if let Some(state) = options.state {
        return Ok(state);
    }
    let states: Vec<&Type> = arguments
        .iter()
        .filter_map(|argument| state_of(argument))
        .collect();
    match states[..] {
        [] => Ok(parse_quote!(())),
        [state] => Ok(state.clone()),
        [_, other, ..] => Err(Error::new(
            other.span(),
            "several states: name the state of the subscriber with \
             `#[debug_handler(state = YourState)]`",
        )),
    }
}

/// Returns the `T` of a type written as `State<T>`.
fn state_of(argument: &Type) -> Option<&Type> {
    let Type::Path(path) = argument else {
        return None;
    };
    let last = path
        .path
        .segments
        .last()
        .filter(|segment| segment.ident == "State")?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return None;
    };
    arguments.args.iter().find_map(|argument| {
        if let GenericArgument::Type(state) = argument {
            Some(state)
        } else {
            None
        }
    })
}

fn checks_of(function: &ItemFn, types: &[&Type], state: &Type) -> TokenStream {
    let name = &function.sig.ident;
    // Each check is a call with the part's type as written, so the compiler's error points at the
    // part.
    let each = types.iter().enumerate().map(|(at, argument)| {
        let check = format_ident!("argument_{}", at, span = Span::call_site());
        let call = match at {
            0 => quote_spanned!(argument.span()=> event::<#argument>();),
            _ => quote_spanned!(argument.span()=> argument::<#argument, #state, _>();),
        };
        quote!(fn #check() { #call })
    });
    let output = match &function.sig.output {
        ReturnType::Default => quote_spanned!(name.span()=> outcome::<()>();),
        ReturnType::Type(_, output) => quote_spanned!(output.span()=> outcome::<#output>();),
    };
    let values = types.iter().map(|argument| quote!(any::<#argument>()));
    let future = quote_spanned!(name.span()=> future(#name(#(#values),*)););
    quote! {
        #[allow(dead_code, clippy::all)]
        const _: () = {
            fn event<T: ::tidings::subscriber::typestate::EventArgument>() {}
            fn argument<T: ::tidings::subscriber::typestate::Argument<S, Via>, S, Via>() {}
            fn outcome<T: ::tidings::subscriber::typestate::IntoOutcome>() {}
            fn future<F: ::std::future::Future + ::std::marker::Send>(_: F) {}
            fn any<T>() -> T {
                ::std::unreachable!("this function is compiled but never called")
            }
            #(#each)*
            fn check_outcome() { #output }
            fn check_future() { #future }
        };
    }
}
