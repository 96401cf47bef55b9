//! What the documentation owes to whoever calls this crate: each public `async fn` says what
//! happens when its future is dropped, each public function that can fail says how, and each public
//! type has an example.
//!
//! Looks at tokens and not at items, so that what macros write is looked at, too.

use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Not part of the API: the engine, where `pub` means `pub(crate)`, and its hidden door.
const ENGINE: [&str; 8] = ["clc", "conn", "engine", "ism", "link", "rt", "sync", "shield"];
/// What the API shows of the engine.
const SHOWN: [(&str, &str); 2] = [("src/clc/id.rs", "Gid"), ("src/clc/diagnosis.rs", "Diagnosis")];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// What is public in a file, with its documentation.
#[derive(Default)]
struct Found {
    functions: Vec<Function>,
    types: Vec<(String, String)>,
}

struct Function {
    name: String,
    docs: String,
    is_async: bool,
    answer: String,
}

impl Found {
    fn look(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut docs = String::new();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    if let Some(TokenTree::Group(group)) = tokens.get(at + 1) {
                        docs += &text_of(group.stream());
                        docs.push('\n');
                        at += 1;
                    }
                }
                TokenTree::Ident(word) if word == "pub" => {
                    self.public(&std::mem::take(&mut docs), &tokens[at + 1..]);
                }
                TokenTree::Group(group) => {
                    docs.clear();
                    self.look(group.stream());
                }
                _ => docs.clear(),
            }
            at += 1;
        }
    }

    /// What follows a `pub`.
    fn public(&mut self, docs: &str, tokens: &[TokenTree]) {
        let head: Vec<String> = tokens
            .iter()
            .take_while(
                |token| !matches!(token, TokenTree::Group(group) if group.delimiter() != Delimiter::Bracket),
            )
            .map(ToString::to_string)
            .collect();
        let word = |word: &str| head.iter().position(|found| found == word);
        if let Some(at) = word("fn") {
            if head[..at].iter().all(|word| matches!(word.as_str(), "async" | "const")) {
                let name = head[at + 1..].iter().find(|word| *word != "$").expect("a name").clone();
                let rest = tokens[at..].iter().take_while(|token| {
                    !matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
                });
                let signature: Vec<String> = rest.map(ToString::to_string).collect();
                let signature = signature.join(" ");
                let answer = signature.rsplit_once("- >").map_or("", |(_, answer)| answer).replace(' ', "");
                let is_async = head[..at].iter().any(|word| word == "async");
                self.functions.push(Function { name, docs: docs.to_owned(), is_async, answer });
            }
        } else if let Some("struct" | "enum") = head.first().map(String::as_str) {
            self.types.push((head[1].clone(), docs.to_owned()));
        }
    }
}

/// The words of an attribute; of a doc comment its text.
fn text_of(attribute: TokenStream) -> String {
    match syn::parse2::<syn::MetaNameValue>(attribute.clone()) {
        Ok(syn::MetaNameValue {
            value: syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }),
            ..
        }) => text.value(),
        _ => attribute.to_string(),
    }
}

/// What is missing in a source text.
fn faults(place: &str, source: &str, shown: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Found::default();
    found.look(source.parse().unwrap_or_else(|error| panic!("{place}: {error}")));
    let mut faults = Vec::new();
    for Function { name, docs, is_async, answer } in found.functions.iter().filter(|_| shown("")) {
        let mut owes = |section: &str| {
            if !docs.lines().any(|line| line.trim() == section) {
                faults.push(format!("{place}: {name} has no section `{section}`"));
            }
        };
        if *is_async {
            owes("# Cancel safety");
        }
        if answer.contains("io::Result") {
            owes("# Errors");
        }
    }
    for (name, docs) in found.types.iter().filter(|(name, _)| shown(name)) {
        if !docs.contains("```") {
            faults.push(format!("{place}: {name} has no example"));
        }
    }
    faults
}

#[test]
fn the_api_says_what_it_owes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    let mut found = Vec::new();
    let mut looked_at = 0;
    for file in files {
        let place = file.strip_prefix(root).expect("below the root").to_str().expect("UTF-8");
        let room = place.trim_start_matches("src/").split(['/', '.']).next().expect("a name");
        let source = fs::read_to_string(&file).expect("a source");
        if !ENGINE.contains(&room) {
            looked_at += 1;
            found.extend(faults(place, &source, |_| true));
        } else {
            found.extend(faults(place, &source, |name| SHOWN.contains(&(place, name))));
        }
    }
    assert!(looked_at > 10, "only {looked_at} files");
    assert!(found.is_empty(), "{} faults:\n{}", found.len(), found.join("\n"));
}

/// The test can fail: also in a macro, and where only part is said.
#[test]
fn what_is_missing_is_named() {
    let source = r#"
        /// Has an example.
        /// ```
        /// ```
        pub struct Fine;
        /// Has none.
        #[derive(Debug)]
        pub struct Bare<'a>(&'a str);
        pub(crate) struct Private;
        impl Fine {
            /// # Cancel safety
            ///
            /// Nothing is lost.
            pub async fn forgets_errors(&self) -> io::Result<()> { Ok(()) }
            /// # Errors
            pub async fn forgets_cancelling(&self) -> std::io::Result<()> { Ok(()) }
            /// Nothing to say.
            pub fn plain(&self, f: impl FnOnce() -> io::Result<()>) -> u32 { 0 }
            pub(crate) async fn private(&self) -> io::Result<()> { Ok(()) }
            fn own(&self) -> io::Result<()> { Ok(()) }
        }
        macro_rules! methods {
            ($name:ident) => {
                /// In a macro.
                pub fn poll_it(&self) -> Poll<io::Result<()>> { todo!() }
                pub fn $name(&self) -> io::Result<()> { todo!() }
            };
        }
    "#;
    let found = faults("here", source, |_| true);
    assert_eq!(
        found,
        [
            "here: forgets_errors has no section `# Errors`",
            "here: forgets_cancelling has no section `# Cancel safety`",
            "here: poll_it has no section `# Errors`",
            "here: name has no section `# Errors`",
            "here: Bare has no example",
        ]
    );
}
