//! What `cfg` leaves of tokio's sources on this target: attributes, and the macros that tokio wraps
//! items in.

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts;
use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::parse::{ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, ExprLit, Item, Lit, Macro, Meta, Token};

/// Conditions that never hold in a program that uses the stable tokio on Linux.
const NEVER: [&str; 7] = ["windows", "docsrs", "doc", "loom", "test", "tokio_unstable", "tokio_taskdump"];

/// What holds here.
pub(crate) struct Conditions {
    features: BTreeSet<String>,
    /// The condition of each wrapper macro.
    wrappers: BTreeMap<String, Meta>,
}

impl Conditions {
    /// `macros` is tokio's file of wrapper macros.
    pub(crate) fn new(features: BTreeSet<String>, macros: &Path) -> Self {
        let text = fs::read_to_string(macros).expect("tokio's wrapper macros");
        let mut wrappers = BTreeMap::new();
        for item in syn::parse_file(&text).expect("Rust").items {
            let Item::Macro(item) = item else { continue };
            if let (Some(name), Some(condition)) = (item.ident, first_condition(item.mac.tokens)) {
                wrappers.insert(name.to_string(), condition);
            }
        }
        Self { features, wrappers }
    }

    /// Do all `#[cfg]`s among the attributes hold?
    pub(crate) fn hold(&self, attributes: &[Attribute]) -> bool {
        attributes
            .iter()
            .filter(|attribute| attribute.path().is_ident("cfg"))
            .all(|attribute| self.holds(&attribute.parse_args::<Meta>().expect("a condition")))
    }

    /// What a wrapper macro leaves of its content.
    pub(crate) fn unwrap(&self, wrapper: &Macro) -> Option<TokenStream> {
        let name = wrapper.path.require_ident().expect("a wrapper macro").to_string();
        if name == "feature" {
            let split =
                |input: ParseStream<'_>| Ok((Attribute::parse_inner(input)?, input.parse::<TokenStream>()?));
            let (attributes, content) = split.parse2(wrapper.tokens.clone()).expect("#![condition] items");
            return attributes.iter().all(|attribute| self.holds(&attribute.meta)).then_some(content);
        }
        let Some(condition) = self.wrappers.get(&name) else {
            panic!(
                "tokio wraps something public in {name}!, which tests/surface/conditions.rs does not understand"
            );
        };
        self.holds(condition).then(|| wrapper.tokens.clone())
    }

    fn holds(&self, condition: &Meta) -> bool {
        match condition {
            Meta::Path(flag) => match flag.require_ident().expect("a flag").to_string().as_str() {
                "unix" => cfg!(unix),
                never if NEVER.contains(&never) => false,
                flag => panic!("the condition {flag} is not known to tests/surface/conditions.rs"),
            },
            Meta::NameValue(pair) => {
                let Expr::Lit(ExprLit { lit: Lit::Str(value), .. }) = &pair.value else {
                    panic!("a condition without a string");
                };
                let value = value.value();
                match pair.path.require_ident().expect("a key").to_string().as_str() {
                    "feature" => self.features.contains(&value),
                    "target_os" => consts::OS == value,
                    "target_family" => consts::FAMILY == value,
                    "target_arch" => consts::ARCH == value,
                    "target_env" => (if cfg!(target_env = "musl") { "musl" } else { "gnu" }) == value,
                    key => panic!("the condition {key} is not known to tests/surface/conditions.rs"),
                }
            }
            Meta::List(list) => {
                let parts = list
                    .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
                    .expect("a list of conditions");
                match list.path.require_ident().expect("an operator").to_string().as_str() {
                    "all" => parts.iter().all(|part| self.holds(part)),
                    "any" => parts.iter().any(|part| self.holds(part)),
                    "not" => !self.holds(parts.first().expect("what does not hold")),
                    operator => panic!("the operator {operator} is not known to tests/surface/conditions.rs"),
                }
            }
        }
    }
}

/// The first `#[cfg(…)]` in the body of a macro.
fn first_condition(body: TokenStream) -> Option<Meta> {
    for token in body {
        let TokenTree::Group(group) = token else { continue };
        let inner: Vec<TokenTree> = group.stream().into_iter().collect();
        match inner.as_slice() {
            [TokenTree::Ident(word), TokenTree::Group(condition)]
                if group.delimiter() == Delimiter::Bracket && word == "cfg" =>
            {
                // `$meta` of `feature!` is none.
                return syn::parse2(condition.stream()).ok();
            }
            _ => {
                if let Some(found) = first_condition(group.stream()) {
                    return Some(found);
                }
            }
        }
    }
    None
}
