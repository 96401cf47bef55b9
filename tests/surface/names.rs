//! What a name in one of tokio's modules means to another crate.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit_mut::{self, VisitMut};
use syn::{GenericParam, Generics, Path, Receiver, Type, UseTree, parse_quote};

use crate::offers::leaves;

/// What the `use` lines of a module bring.
#[derive(Clone, Default)]
pub(crate) struct Scope {
    names: BTreeMap<String, Path>,
    parent: BTreeMap<String, Path>,
    pub(crate) globs: Vec<Path>,
}

impl Scope {
    pub(crate) fn new(parent: Option<&Scope>) -> Self {
        Self { parent: parent.map(|parent| parent.names.clone()).unwrap_or_default(), ..Self::default() }
    }

    pub(crate) fn bring(&mut self, tree: &UseTree, types: &BTreeMap<String, Path>) {
        for (name, path) in leaves(tree) {
            let path = self.outside(&path, types);
            if name == "*" {
                self.globs.push(path);
            } else {
                self.names.insert(name, path);
            }
        }
    }

    /// A path of a `use`, as another crate writes it.
    fn outside(&self, path: &Path, types: &BTreeMap<String, Path>) -> Path {
        let last = path.segments.last().expect("a name").ident.to_string();
        let rest = path.segments.iter().skip(1);
        match path.segments[0].ident.to_string().as_str() {
            "crate" | "super" | "self" if types.contains_key(&last) => types[&last].clone(),
            "crate" => parse_quote!(::tokio #(::#rest)*),
            "super" => self.parent.get(&last).unwrap_or(path).clone(),
            "self" => path.clone(),
            _ => parse_quote!(::#path),
        }
    }
}

/// Makes the paths of a signature or type absolute, and `Self` the type itself.
pub(crate) struct Absolute<'a> {
    scope: &'a Scope,
    types: &'a BTreeMap<String, Path>,
    this: &'a Type,
    generics: BTreeSet<String>,
}

impl<'a> Absolute<'a> {
    pub(crate) fn new(
        scope: &'a Scope,
        types: &'a BTreeMap<String, Path>,
        this: &'a Type,
        generics: &Generics,
    ) -> Self {
        let mut absolute = Self { scope, types, this, generics: BTreeSet::new() };
        absolute.also(generics);
        absolute
    }

    /// More names that stand for themselves.
    pub(crate) fn also(&mut self, generics: &Generics) {
        self.generics.extend(generics.params.iter().filter_map(|parameter| match parameter {
            GenericParam::Type(parameter) => Some(parameter.ident.to_string()),
            GenericParam::Const(parameter) => Some(parameter.ident.to_string()),
            GenericParam::Lifetime(_) => None,
        }));
    }
}

impl VisitMut for Absolute<'_> {
    fn visit_receiver_mut(&mut self, receiver: &mut Receiver) {
        // `&self` says `Self` without a word.
        if receiver.colon_token.is_some() {
            visit_mut::visit_receiver_mut(self, receiver);
        }
    }

    fn visit_path_mut(&mut self, path: &mut Path) {
        visit_mut::visit_path_mut(self, path);
        if path.leading_colon.is_some() {
            return;
        }
        let first = path.segments[0].ident.to_string();
        if self.generics.contains(&first) {
            return;
        }
        if first == "Self" {
            if let (1, Type::Path(this)) = (path.segments.len(), self.this) {
                *path = this.path.clone();
            }
            return;
        }
        let mut absolute = match first.as_str() {
            "std" | "core" | "alloc" => {
                path.leading_colon = Some(Default::default());
                return;
            }
            "crate" | "super" | "self" => {
                let mut outside = self.scope.outside(path, self.types);
                let last = outside.segments.last_mut().expect("a name");
                last.arguments = path.segments.last().expect("a name").arguments.clone();
                *path = outside;
                return;
            }
            _ => match self.scope.names.get(&first).or_else(|| self.types.get(&first)) {
                Some(absolute) => absolute.clone(),
                None => return,
            },
        };
        absolute.segments.last_mut().expect("a name").arguments = path.segments[0].arguments.clone();
        absolute.segments.extend(path.segments.iter().skip(1).cloned());
        *path = absolute;
    }
}
