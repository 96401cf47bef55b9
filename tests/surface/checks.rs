//! The code that stands or falls with one offer: a module on one line, so that the line of an error
//! names the offer.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::visit_mut::{self, VisitMut};
use syn::{
    FnArg, GenericParam, Generics, Lifetime, ParenthesizedGenericArguments, Pat, PatIdent, PathArguments,
    ReturnType, Signature, Type, TypeParamBound, TypeReference, parse_quote,
};

use crate::offers::{Offer, What};

/// What is asked of a compiled check when the program runs.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) code: String,
    /// It has a function `autos`, which tells the auto traits of a type or future.
    pub(crate) autos: bool,
    /// It has a function `panics`, which tells where the method panics.
    pub(crate) panics: bool,
}

/// Types to stand for type parameters: the bound's name, and two types, one with all auto traits
/// where there is one.
fn samples(bound: Option<&str>) -> Option<[Type; 2]> {
    Some(match bound {
        None => [parse_quote!(()), parse_quote!(::std::rc::Rc<()>)],
        Some("ToSocketAddrs") => [parse_quote!(::std::net::SocketAddr), parse_quote!(&'static str)],
        Some("BufMut") => [parse_quote!(::std::vec::Vec<u8>), parse_quote!(&'static mut [u8])],
        Some(_) => return None,
    })
}

/// Arguments of methods that panic at their caller; see `panics` of tests/surface/probes.rs.
fn panicking(name: &str) -> Option<TokenStream> {
    Some(match name {
        "TcpStream::from_std" => quote!(crate::probes::stream(nonblocking)),
        "TcpListener::from_std" => quote!(crate::probes::listener(nonblocking)),
        _ => return None,
    })
}

/// The check of one offer, as module `name`; an error says what this test has still to learn.
pub(crate) fn check(name: &str, offer: &Offer) -> Result<Check, String> {
    let name = format_ident!("{name}");
    let globs = &offer.globs;
    let mut check = Check { code: String::new(), autos: false, panics: false };
    let code = match &offer.what {
        What::Type => {
            check.autos = true;
            let this = with_lifetime(&offer.this, "'static");
            quote! {
                pub fn type_name() -> &'static str { ::std::any::type_name::<#this>() }
                pub fn autos() -> Vec<String> { vec![crate::autos!(crate::probes::Probe::<#this>::new())] }
            }
        }
        What::Field(member, kind) => {
            let (generics, this, kind) = (generics(&[&offer.generics]), some(&offer.this), some(kind));
            quote!(pub fn field<#generics>(this: &'any #this) -> &'any #kind { &this.#member })
        }
        What::Literal(fields) => {
            let (generics, this) = (generics(&[&offer.generics]), some(&offer.this));
            let Type::Path(path) = &offer.this else { return Err("a type that is no path".to_owned()) };
            let path = without_arguments(&path.path);
            let (members, kinds): (Vec<_>, Vec<_>) =
                fields.iter().map(|(member, kind)| (member, some(kind))).unzip();
            let values: Vec<_> = (0..fields.len()).map(|field| format_ident!("field_{field}")).collect();
            quote! {
                pub fn build<#generics>(#(#values: #kinds),*) -> #this { #path { #(#members: #values),* } }
                pub fn take<#generics>(this: #this) { let #path { #(#members: #values),* } = this; }
            }
        }
        What::Impl(path) => {
            let (generics, this) = (generics(&[&offer.generics]), some(&offer.this));
            let path = with_lifetime(&syn::TypePath { qself: None, path: path.clone() }.into(), "'any");
            let conditions = &offer.generics.where_clause;
            quote! {
                fn is<T: ?Sized + #path>() {}
                pub fn check<#generics>() #conditions { is::<#this>() }
            }
        }
        What::Method { signature, track_caller } => {
            check.autos = signature.asyncness.is_some();
            check.panics = *track_caller;
            let mut code = method(offer, signature)?;
            if *track_caller {
                let Some(argument) = panicking(&offer.name) else {
                    return Err(
                        "it is #[track_caller], and tests/surface/checks.rs knows no call that panics".into(),
                    );
                };
                let (this, ident) = (&offer.this, &signature.ident);
                code.extend(quote! {
                    pub fn panics() -> Vec<String> {
                        crate::probes::panics(|nonblocking| drop(<#this>::#ident(#argument)))
                    }
                });
            }
            code
        }
    };
    check.code = quote!(pub mod #name { #(use #globs::*;)* #code }).to_string();
    Ok(check)
}

fn method(offer: &Offer, signature: &Signature) -> Result<TokenStream, String> {
    if signature.constness.is_some() || signature.unsafety.is_some() || signature.abi.is_some() {
        return Err("const, unsafe and extern methods are not known to tests/surface/checks.rs".to_owned());
    }
    let (this, name) = (&offer.this, &signature.ident);
    let own: Vec<_> = signature
        .generics
        .params
        .iter()
        .filter_map(|parameter| match parameter {
            GenericParam::Type(parameter) => Some(&parameter.ident),
            GenericParam::Const(parameter) => Some(&parameter.ident),
            // Lifetimes of methods bind late: nobody can name them in a call.
            GenericParam::Lifetime(_) => None,
        })
        .collect();
    let turbofish = (!own.is_empty()).then(|| quote!(::<#(#own),*>));
    let call = quote!(<#this>::#name #turbofish);

    // A function of exactly tokio's signature, which calls it: every program that compiled still
    // does.
    let mut wrapper = signature.clone();
    wrapper.ident = format_ident!("wrapper");
    let mut arguments = Vec::new();
    for (place, argument) in wrapper.inputs.iter_mut().enumerate() {
        match argument {
            FnArg::Receiver(receiver) => {
                if receiver.colon_token.is_none() && receiver.reference.is_none() {
                    receiver.mutability = None;
                }
                arguments.push(quote!(self));
            }
            FnArg::Typed(typed) => {
                let argument = format_ident!("argument_{place}");
                arguments.push(argument.to_token_stream());
                let (attrs, by_ref, mutability, subpat) = (Vec::new(), None, None, None);
                *typed.pat = Pat::Ident(PatIdent { attrs, by_ref, mutability, ident: argument, subpat });
            }
        }
    }
    let wait = signature.asyncness.map(|_| quote!(.await));
    let (for_impl, for_type, conditions) = offer.generics.split_for_impl();
    let mut code = quote! {
        pub trait Wrapper #for_impl: Sized #conditions { #wrapper; }
        impl #for_impl Wrapper #for_type for #this #conditions { #wrapper { #call(#(#arguments),*)#wait } }
    };

    // The types of its arguments and of its answer are those, and not merely others that do.
    let inputs = || signature.inputs.iter().map(argument_type);
    let mut parameters = Vec::new();
    let exact: Vec<Type> = inputs()
        .enumerate()
        .map(|(place, kind)| match kind {
            Type::ImplTrait(kind) => {
                let (parameter, bounds) = (format_ident!("Argument{place}"), &kind.bounds);
                parameters.push(quote!(#parameter: #bounds));
                parse_quote!(#parameter)
            }
            kind => some(&with_this(&kind, this)),
        })
        .collect();
    let answer = match &signature.output {
        ReturnType::Default => parse_quote!(()),
        ReturnType::Type(_, kind) => some(&with_this(kind, this)),
    };
    let generics = generics(&[&offer.generics, &signature.generics]);
    let conditions = &signature.generics.where_clause;
    let count = exact.len();
    let same = match signature.asyncness {
        None => {
            let same = format_ident!("exact_{count}");
            quote!(crate::probes::#same::<#(#exact,)* #answer>(#call))
        }
        Some(_) => {
            let same = format_ident!("future_{count}");
            quote!(crate::probes::#same::<#(#exact,)* #answer, _>(#call))
        }
    };
    // Named without its arguments, a method with a type parameter that tokio has not is ambiguous.
    let complete = parameters.is_empty().then(|| quote!(let _ = #call;));
    code.extend(quote!(pub fn exact<#generics #(#parameters),*>() #conditions { #complete #same }));

    if signature.asyncness.is_some() {
        let probes = (0..2).map(|sample| probe(offer, signature, sample)).collect::<Result<Vec<_>, _>>()?;
        code.extend(quote!(
            pub fn autos() -> Vec<String> {
                vec![#(crate::autos!(#probes)),*]
            }
        ));
    }
    Ok(code)
}

/// A probe of the method's future, with samples for its type parameters.
fn probe(offer: &Offer, signature: &Signature, sample: usize) -> Result<TokenStream, String> {
    let mut exchanged = Vec::new();
    for parameter in &signature.generics.params {
        if let GenericParam::Type(parameter) = parameter {
            let bound = parameter.bounds.first().map(|bound| match bound {
                TypeParamBound::Trait(bound) => {
                    bound.path.segments.last().expect("a trait").ident.to_string()
                }
                other => other.to_token_stream().to_string(),
            });
            let Some(types) = samples(bound.as_deref()) else {
                return Err(format!("tests/surface/checks.rs knows no {}", bound.unwrap_or_default()));
            };
            exchanged.push((parameter.ident.clone(), types[sample].clone()));
        }
    }
    let inputs: Vec<Type> = signature
        .inputs
        .iter()
        .map(|argument| {
            let mut kind = match argument_type(argument) {
                Type::ImplTrait(kind) => function(&kind, sample)?,
                kind => with_this(&kind, &offer.this),
            };
            Exchange(&exchanged).visit_type_mut(&mut kind);
            Ok(with_lifetime(&kind, "'static"))
        })
        .collect::<Result<_, String>>()?;
    let own = exchanged.iter().map(|(_, kind)| kind);
    let turbofish = (!exchanged.is_empty()).then(|| quote!(::<#(#own),*>));
    let probe = format_ident!("probe_{}", inputs.len());
    let (this, name) = (with_lifetime(&offer.this, "'static"), &signature.ident);
    Ok(quote!(crate::probes::#probe::<#(#inputs,)* _>(<#this>::#name #turbofish)))
}

/// A type for `impl Fn…(…) -> …`: a function pointer, and a closure that is not `Send`.
fn function(kind: &syn::TypeImplTrait, sample: usize) -> Result<Type, String> {
    let bound = match kind.bounds.first() {
        Some(TypeParamBound::Trait(bound)) => bound,
        _ => return Err(format!("tests/surface/checks.rs knows no {}", kind.to_token_stream())),
    };
    match &bound.path.segments.last().expect("a trait").arguments {
        PathArguments::Parenthesized(_) if sample == 1 => Ok(parse_quote!(::std::boxed::Box<dyn #bound>)),
        PathArguments::Parenthesized(ParenthesizedGenericArguments { inputs, output, .. }) => {
            Ok(parse_quote!(fn(#inputs) #output))
        }
        _ => Err(format!("tests/surface/checks.rs knows no {}", kind.to_token_stream())),
    }
}

fn argument_type(argument: &FnArg) -> Type {
    match argument {
        FnArg::Receiver(receiver) => (*receiver.ty).clone(),
        FnArg::Typed(typed) => (*typed.ty).clone(),
    }
}

/// The parameters of a check: a lifetime for all that is elided, and those of impl and method.
fn generics(all: &[&Generics]) -> TokenStream {
    let lifetimes = |parameter: &&GenericParam| matches!(parameter, GenericParam::Lifetime(_));
    let parameters = || all.iter().flat_map(|generics| &generics.params);
    let first = parameters().filter(lifetimes);
    let rest = parameters().filter(|parameter| !lifetimes(parameter)).cloned().map(|mut parameter| {
        if let GenericParam::Type(parameter) = &mut parameter {
            // It is behind references of that lifetime.
            parameter.bounds.push(parse_quote!('any));
        }
        parameter
    });
    quote!('any, #(#first,)* #(#rest,)*)
}

/// With `'any` where a lifetime is elided.
fn some(kind: &Type) -> Type {
    with_lifetime(kind, "'any")
}

fn with_lifetime(kind: &Type, lifetime: &str) -> Type {
    let mut kind = kind.clone();
    Elided { lifetime: Lifetime::new(lifetime, Span::call_site()), all: lifetime == "'static" }
        .visit_type_mut(&mut kind);
    kind
}

fn with_this(kind: &Type, this: &Type) -> Type {
    let mut kind = kind.clone();
    Exchange(&[(format_ident!("Self"), this.clone())]).visit_type_mut(&mut kind);
    kind
}

fn without_arguments(path: &syn::Path) -> syn::Path {
    let mut path = path.clone();
    path.segments.iter_mut().for_each(|segment| segment.arguments = PathArguments::None);
    path
}

/// Writes a lifetime where one is elided, or everywhere.
struct Elided {
    lifetime: Lifetime,
    all: bool,
}

impl VisitMut for Elided {
    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if self.all || lifetime.ident == "_" {
            *lifetime = self.lifetime.clone();
        }
    }

    fn visit_type_reference_mut(&mut self, reference: &mut TypeReference) {
        reference.lifetime.get_or_insert_with(|| self.lifetime.clone());
        visit_mut::visit_type_reference_mut(self, reference);
    }

    fn visit_parenthesized_generic_arguments_mut(&mut self, _: &mut ParenthesizedGenericArguments) {
        // What is elided in `Fn(&T)` is another lifetime with each call.
    }
}

/// Writes types for names.
struct Exchange<'a>(&'a [(syn::Ident, Type)]);

impl VisitMut for Exchange<'_> {
    fn visit_type_mut(&mut self, kind: &mut Type) {
        let name = match kind {
            Type::Path(path) if path.qself.is_none() => path.path.get_ident().cloned(),
            _ => None,
        };
        match self.0.iter().find(|(from, _)| Some(from) == name.as_ref()) {
            Some((_, to)) => *kind = to.clone(),
            None => visit_mut::visit_type_mut(self, kind),
        }
    }
}
