//! What tokio offers to everyone: its public types of TCP with their fields, methods and trait
//! impls, every name in them made absolute. `WHOSE` stands for the crate, which is tokio or this
//! one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path as FilePath;

use proc_macro2::{Span, TokenStream};
use quote::ToTokens;
use syn::parse::{Parse, ParseStream, Parser};
use syn::visit_mut::VisitMut;
use syn::{
    Attribute, Fields, Generics, Ident, ImplItem, Item, ItemImpl, ItemStruct, ItemUse, Member, Path,
    Signature, Type, UseTree, Visibility, parse_quote,
};

use crate::conditions::Conditions;
use crate::locked::Tokio;
use crate::names::{Absolute, Scope};

/// One thing that a program may rely on.
pub(crate) struct Offer {
    pub(crate) what: What,
    /// The type it belongs to: its name, and as a type.
    pub(crate) owner: String,
    pub(crate) this: Type,
    /// The generics of the impl or the struct.
    pub(crate) generics: Generics,
    /// `use a::b::*` where it stands.
    pub(crate) globs: Vec<Path>,
    /// As a reader knows it, how tokio writes it, and where.
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) place: String,
}

pub(crate) enum What {
    Type,
    Field(Member, Box<Type>),
    /// All fields are public: the struct can be built and taken apart.
    Literal(Vec<(Member, Type)>),
    Method {
        signature: Box<Signature>,
        track_caller: bool,
    },
    Impl(Path),
}

/// Reads all of it.
pub(crate) fn offers(tokio: &Tokio) -> Vec<Offer> {
    let conditions = Conditions::new(tokio.features.clone(), &tokio.root.join("src/macros/cfg.rs"));
    let mut types = BTreeMap::new();
    for (file, module, only) in
        [("src/net/mod.rs", "net", Some("tcp")), ("src/net/tcp/mod.rs", "net::tcp", None)]
    {
        let text = fs::read_to_string(tokio.root.join(file)).expect("a module of tokio");
        let items = present(&conditions, syn::parse_file(&text).expect("Rust").items);
        for item in items {
            let Item::Use(ItemUse { vis: Visibility::Public(_), tree, .. }) = item else { continue };
            for (name, path) in leaves(&tree) {
                if only.is_none_or(|only| path.segments[0].ident == only) {
                    let path: Path = syn::parse_str(&format!("::WHOSE::{module}::{name}")).expect("a path");
                    types.insert(name, path);
                }
            }
        }
    }
    let mut reader =
        Reader { conditions, types, file: String::new(), text: String::new(), offers: Vec::new() };
    let folder = tokio.root.join("src/net/tcp");
    let mut files: Vec<_> =
        fs::read_dir(&folder).expect("tokio's TCP").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        reader.read(&tokio.root, file);
    }
    for name in reader.types.keys() {
        let known =
            reader.offers.iter().any(|offer| matches!(offer.what, What::Type) && offer.owner == *name);
        assert!(known, "{name} is public in tokio, but tests/surface/offers.rs finds no struct of that name");
    }
    reader.offers
}

/// The last names and the whole paths of what a `use` brings; `*` for everything.
pub(crate) fn leaves(tree: &UseTree) -> Vec<(String, Path)> {
    fn walk(tree: &UseTree, at: Option<Path>, found: &mut Vec<(String, Path)>) {
        let below = |ident: &Ident| -> Path {
            match &at {
                Some(at) => parse_quote!(#at::#ident),
                None => parse_quote!(#ident),
            }
        };
        match tree {
            UseTree::Path(path) => walk(&path.tree, Some(below(&path.ident)), found),
            UseTree::Name(name) if name.ident == "self" => {
                let at = at.expect("self of a module");
                found.push((at.segments.last().expect("a name").ident.to_string(), at));
            }
            UseTree::Name(name) => found.push((name.ident.to_string(), below(&name.ident))),
            UseTree::Rename(rename) => found.push((rename.rename.to_string(), below(&rename.ident))),
            UseTree::Glob(_) => found.push(("*".to_owned(), at.expect("all of a module"))),
            UseTree::Group(group) => group.items.iter().for_each(|tree| walk(tree, at.clone(), found)),
        }
    }
    let mut found = Vec::new();
    walk(tree, None, &mut found);
    found
}

/// The items that are compiled on this target, those in wrapper macros among them.
fn present(conditions: &Conditions, items: Vec<Item>) -> Vec<Item> {
    let mut left = Vec::new();
    for item in items {
        let attributes: &[Attribute] = match &item {
            Item::Enum(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Macro(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Type(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            other => {
                panic!("{} is nothing that tests/surface/offers.rs understands", other.to_token_stream())
            }
        };
        if !conditions.hold(attributes) {
            continue;
        }
        if let Item::Macro(wrapper) = &item {
            if let Some(content) = conditions.unwrap(&wrapper.mac) {
                left.extend(present(conditions, all.parse2(content).expect("items")));
            }
        } else {
            left.push(item);
        }
    }
    left
}

/// As many as there are.
fn all<T: Parse>(input: ParseStream<'_>) -> syn::Result<Vec<T>> {
    let mut found = Vec::new();
    while !input.is_empty() {
        found.push(input.parse()?);
    }
    Ok(found)
}

struct Reader {
    conditions: Conditions,
    /// The public types, and their absolute paths.
    types: BTreeMap<String, Path>,
    /// What is being read.
    file: String,
    text: String,
    offers: Vec<Offer>,
}

impl Reader {
    fn read(&mut self, root: &FilePath, file: &FilePath) {
        self.file = file.strip_prefix(root).expect("a file of tokio").display().to_string();
        self.text = fs::read_to_string(file).expect("a source of tokio");
        let items = syn::parse_file(&self.text).expect("Rust").items;
        self.module(items, None);
    }

    fn module(&mut self, items: Vec<Item>, parent: Option<&Scope>) {
        let items = present(&self.conditions, items);
        let mut scope = Scope::new(parent);
        for item in &items {
            if let Item::Use(item) = item {
                scope.bring(&item.tree, &self.types);
            }
        }
        for item in items {
            match item {
                Item::Struct(item) => self.structure(item, &scope),
                Item::Impl(item) => self.implementation(item, &scope),
                Item::Mod(item) => {
                    if let Some((_, items)) = item.content {
                        self.module(items, Some(&scope));
                    }
                }
                Item::Enum(item) if self.types.contains_key(&item.ident.to_string()) => {
                    panic!("the enum {} is nothing that tests/surface/offers.rs understands", item.ident);
                }
                _ => {}
            }
        }
    }

    fn structure(&mut self, mut item: ItemStruct, scope: &Scope) {
        let owner = item.ident.to_string();
        let Some(path) = self.types.get(&owner).cloned() else { return };
        let (_, arguments, _) = item.generics.split_for_impl();
        let this: Type = parse_quote!(#path #arguments);
        let mut absolute = Absolute::new(scope, &self.types, &this, &item.generics);
        item.fields.iter_mut().for_each(|field| absolute.visit_type_mut(&mut field.ty));
        let module = path.segments.iter().nth(1).map(|_| path.to_token_stream().to_string().replace(' ', ""));
        let name = module.expect("a path").replace("::WHOSE::", "");
        let text =
            format!("pub struct {owner}{}", item.generics.to_token_stream().to_string().replace(' ', ""));
        let generics = item.generics.clone();
        let place = item.ident.span();
        let mut offer = |what, name: String, text: &str| {
            let place = format!("{}:{}", self.file, place.start().line);
            let (owner, this, generics) = (owner.clone(), this.clone(), generics.clone());
            let (globs, text) = (scope.globs.clone(), text.to_owned());
            self.offers.push(Offer { what, owner, this, generics, globs, name, text, place });
        };
        offer(What::Type, name, &text);
        for derived in derives(&item.attrs) {
            let word = derived.segments.last().expect("a trait").ident.to_string();
            offer(What::Impl(derived), format!("{word} for {owner}"), &format!("#[derive({word})] {text}"));
        }
        let fields: Vec<(Member, Type, bool)> = item
            .fields
            .members()
            .zip(&item.fields)
            .map(|(member, field)| (member, field.ty.clone(), matches!(field.vis, Visibility::Public(_))))
            .collect();
        for (member, kind, _) in fields.iter().filter(|(.., public)| *public) {
            let shown = format!("{owner}.{}", member.to_token_stream());
            offer(What::Field(member.clone(), Box::new(kind.clone())), shown, &text);
        }
        let open = item.attrs.iter().all(|attribute| !attribute.path().is_ident("non_exhaustive"));
        if open && !matches!(item.fields, Fields::Unit) && fields.iter().all(|(.., public)| *public) {
            let fields = fields.into_iter().map(|(member, kind, _)| (member, kind)).collect();
            offer(What::Literal(fields), format!("{owner} as a literal"), &text);
        }
    }

    fn implementation(&mut self, mut item: ItemImpl, scope: &Scope) {
        let Type::Path(itself) = &*item.self_ty else { return };
        let owner = itself.path.segments.last().expect("a type").ident.to_string();
        // `Self` stands for itself here.
        let mut absolute = Absolute::new(scope, &self.types, &item.self_ty, &item.generics);
        let mut this = (*item.self_ty).clone();
        absolute.visit_type_mut(&mut this);
        let Type::Path(path) = &this else { unreachable!("it was a path") };
        let of_ours = self.types.get(&owner).is_some_and(|public| {
            let names =
                |path: &Path| path.segments.iter().map(|part| part.ident.to_string()).collect::<Vec<_>>();
            names(public) == names(&path.path)
        });
        if !of_ours {
            return;
        }
        let mut generics = item.generics.clone();
        Absolute::new(scope, &self.types, &this, &item.generics).visit_generics_mut(&mut generics);
        let mut offer = |what, name: String, from: Span, to: Span| {
            let text = self.text[from.byte_range().start..to.byte_range().end].split_whitespace();
            let text = text.collect::<Vec<_>>().join(" ").replace("( ", "(").replace(", )", ")");
            let place = format!("{}:{}", self.file, from.start().line);
            let (owner, this) = (owner.clone(), this.clone());
            let (globs, generics) = (scope.globs.clone(), generics.clone());
            self.offers.push(Offer { what, owner, this, generics, globs, name, text, place });
        };
        if let Some((negative, mut path, _)) = item.trait_.take() {
            // What is dropped at the end of a scope is no promise.
            if negative.is_some() || path.segments.last().is_some_and(|last| last.ident == "Drop") {
                return;
            }
            let shown = path.to_token_stream().to_string().replace(' ', "");
            for part in &item.items {
                if let ImplItem::Type(associated) = part {
                    with_associated(&mut path, &associated.ident, &associated.ty);
                }
            }
            Absolute::new(scope, &self.types, &this, &item.generics).visit_path_mut(&mut path);
            offer(What::Impl(path), format!("{shown} for {owner}"), item.impl_token.span, end(&item.self_ty));
            return;
        }
        for part in methods(&self.conditions, item.items) {
            let ImplItem::Fn(mut method) = part else {
                panic!("{} is nothing that tests/surface/offers.rs understands", part.to_token_stream());
            };
            let (from, to) = (start(&method.vis), end(&method.sig));
            let name = format!("{owner}::{}", method.sig.ident);
            let mut absolute = Absolute::new(scope, &self.types, &this, &item.generics);
            absolute.also(&method.sig.generics);
            absolute.visit_signature_mut(&mut method.sig);
            let track_caller = method.attrs.iter().any(|attribute| attribute.path().is_ident("track_caller"));
            let what = What::Method { signature: Box::new(method.sig), track_caller };
            offer(what, name, from, to);
        }
    }
}

/// The public items of an impl that are compiled and not hidden. A hidden one that is deprecated is
/// an old name, which programs still use.
fn methods(conditions: &Conditions, items: Vec<ImplItem>) -> Vec<ImplItem> {
    let mut left = Vec::new();
    for item in items {
        let (attributes, public) = match &item {
            ImplItem::Const(item) => (&item.attrs, matches!(item.vis, Visibility::Public(_))),
            ImplItem::Fn(item) => (&item.attrs, matches!(item.vis, Visibility::Public(_))),
            ImplItem::Macro(item) => (&item.attrs, false),
            other => {
                panic!("{} is nothing that tests/surface/offers.rs understands", other.to_token_stream())
            }
        };
        if !conditions.hold(attributes) {
            continue;
        }
        let has = |name: &str| attributes.iter().any(|attribute| attribute.path().is_ident(name));
        let hidden = attributes.iter().any(|attribute| {
            attribute.path().is_ident("doc")
                && attribute.parse_args::<Ident>().is_ok_and(|word| word == "hidden")
        });
        if let ImplItem::Macro(wrapper) = &item {
            if let Some(content) = conditions.unwrap(&wrapper.mac) {
                left.extend(methods(conditions, all.parse2(content).expect("methods")));
            }
        } else if public && (!hidden || has("deprecated")) {
            left.push(item);
        }
    }
    left
}

/// `Trait<A>` with `Name = Type` added.
fn with_associated(path: &mut Path, name: &Ident, kind: &Type) {
    let last = path.segments.last_mut().expect("a trait");
    let before = match &last.arguments {
        syn::PathArguments::AngleBracketed(arguments) => arguments.args.to_token_stream(),
        _ => TokenStream::new(),
    };
    let comma = (!before.is_empty()).then(|| quote::quote!(,));
    last.arguments = syn::PathArguments::AngleBracketed(parse_quote!(<#before #comma #name = #kind>));
}

/// What `#[derive]` implements.
fn derives(attributes: &[Attribute]) -> Vec<Path> {
    let mut found = Vec::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("derive")) {
        attribute
            .parse_nested_meta(|part| {
                let name = part.path.require_ident()?;
                found.push(match name.to_string().as_str() {
                    "Debug" => parse_quote!(::std::fmt::Debug),
                    "Hash" => parse_quote!(::std::hash::Hash),
                    "Clone" => parse_quote!(::std::clone::Clone),
                    "Copy" => parse_quote!(::std::marker::Copy),
                    "Default" => parse_quote!(::std::default::Default),
                    "PartialEq" | "Eq" | "PartialOrd" | "Ord" => parse_quote!(::std::cmp::#name),
                    other => panic!("the derive {other} is not known to tests/surface/offers.rs"),
                });
                Ok(())
            })
            .expect("a derive");
    }
    found
}

fn start(tokens: &impl ToTokens) -> Span {
    tokens.to_token_stream().into_iter().next().expect("a token").span()
}

fn end(tokens: &impl ToTokens) -> Span {
    tokens.to_token_stream().into_iter().last().expect("a token").span()
}
