//! What one file says about modules and names: its `use` items, the paths in its code, the names it defines, the
//! modules it declares. Code for tests alone is left out.

use std::collections::BTreeSet;

use super::token::{Kind, Token, tokens};

/// One module, without the modules that have files of their own.
#[derive(Debug, Default)]
pub struct Parsed {
    /// `mod name;`
    pub declared: Vec<String>,
    /// `mod name { ... }`
    pub inline: Vec<(String, Parsed)>,
    pub defined: BTreeSet<String>,
    pub imports: Vec<Import>,
    /// `a::b::c` outside `use` items.
    pub paths: Vec<UsedPath>,
    /// Names that stand in the code on their own or first in a path: what makes a re-export an import as well.
    pub words: BTreeSet<String>,
}

/// One name of a `use` item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub path: Vec<String>,
    pub brings: Brings,
    /// `pub use` of any visibility.
    pub public: bool,
    pub line: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Brings {
    Name(String),
    /// `use a::*`
    All,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedPath {
    pub path: Vec<String>,
    pub line: usize,
}

const DEFINING: [&str; 8] = ["fn", "struct", "enum", "union", "trait", "type", "const", "static"];
/// First words of items; anything else behind an attribute is a field, a variant or a match arm.
const ITEMS: [&str; 18] = [
    "pub",
    "use",
    "mod",
    "fn",
    "struct",
    "enum",
    "union",
    "trait",
    "type",
    "const",
    "static",
    "impl",
    "unsafe",
    "async",
    "extern",
    "macro_rules",
    "let",
    "return",
];

pub fn parse(text: &str) -> Parsed {
    let tokens = tokens(text);
    let mut parsed = Parsed::default();
    Parser { tokens: &tokens }.module(0, tokens.len(), &mut parsed);
    parsed
}

struct Parser<'a> {
    tokens: &'a [Token],
}

impl Parser<'_> {
    fn word(&self, at: usize) -> Option<&str> {
        self.tokens.get(at).and_then(Token::word)
    }

    fn is(&self, at: usize, mark: char) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is(mark))
    }

    fn is_sep(&self, at: usize) -> bool {
        self.tokens.get(at).is_some_and(|token| token.kind == Kind::PathSep)
    }

    /// The position of the bracket that closes the one at `open`.
    fn close(&self, open: usize) -> usize {
        let mut depth = 0usize;
        for (at, token) in self.tokens.iter().enumerate().skip(open) {
            match token.kind {
                Kind::Open(_) => depth += 1,
                Kind::Close(_) => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return at;
                    }
                }
                _ => {}
            }
        }
        self.tokens.len()
    }

    fn module(&self, start: usize, end: usize, out: &mut Parsed) {
        let mut at = start;
        // For each open bracket whether items inside it are the module's.
        let mut open = Vec::new();
        while at < end {
            match &self.tokens[at].kind {
                Kind::Mark('#') if self.is(at + 1, '!') && self.is(at + 2, '[') => {
                    if self.is_for_tests(at + 2) {
                        return;
                    }
                    at += 1;
                }
                Kind::Mark('#') if self.is(at + 1, '[') && self.is_for_tests(at + 1) => {
                    at = self.behind_item(self.close(at + 1) + 1, end);
                }
                Kind::Open(_) => {
                    open.push(open.last() != Some(&false) && self.holds_items(at));
                    at += 1;
                }
                Kind::Close(_) => {
                    open.pop();
                    at += 1;
                }
                Kind::Word(word) => at = self.at_word(at, word, open.last() != Some(&false), out),
                _ => at += 1,
            }
        }
    }

    /// Whether a bracket opens a list of items: that of a macro's call or of `extern "C"`.
    fn holds_items(&self, open: usize) -> bool {
        let before = |count: usize| open.checked_sub(count).map(|at| &self.tokens[at]);
        before(1).is_some_and(|token| token.is('!') || token.kind == Kind::Literal)
            && before(2).is_some_and(|token| token.word().is_some())
    }

    /// Reads from the word at `at`; returns where to go on.
    fn at_word(&self, at: usize, word: &str, of_module: bool, out: &mut Parsed) -> usize {
        let before = |count: usize| at.checked_sub(count).unwrap_or(self.tokens.len());
        // `a..b` is a range, `a.b` a field or a method.
        if self.is_sep(before(1)) || (self.is(before(1), '.') && !self.is(before(2), '.')) {
            return at + 1;
        }
        if word == "use" && !self.is(at + 1, '<') {
            return self.use_item(at, out);
        }
        if word == "mod"
            && let Some(name) = self.word(at + 1)
        {
            if self.is(at + 2, '{') {
                let close = self.close(at + 2);
                let mut inner = Parsed::default();
                self.module(at + 3, close, &mut inner);
                out.inline.push((name.to_owned(), inner));
                return close + 1;
            }
            out.declared.push(name.to_owned());
            return at + 3;
        }
        if word == "macro_rules"
            && self.is(at + 1, '!')
            && let Some(name) = self.word(at + 2)
        {
            out.defined.insert(name.to_owned());
            return at + 3;
        }
        let is_pointer = self.is(before(1), '*') || self.word(before(1)) == Some("raw");
        if DEFINING.contains(&word)
            && !is_pointer
            && let Some(name) = self.word(at + 1)
        {
            // `const fn`, `static mut`: the next word leads to the name.
            if matches!(name, "fn" | "unsafe" | "extern" | "async") {
                return at + 1;
            }
            let name = if name == "mut" { self.word(at + 2).unwrap_or(name) } else { name };
            if of_module {
                out.defined.insert(name.to_owned());
            }
            return at + 2;
        }
        self.path(at, word, out)
    }

    fn path(&self, at: usize, first: &str, out: &mut Parsed) -> usize {
        let mut path = vec![first.to_owned()];
        let mut next = at + 1;
        while self.is_sep(next)
            && let Some(word) = self.word(next + 1)
        {
            path.push(word.to_owned());
            next += 2;
        }
        // `name:` is a field or a parameter.
        if path.len() > 1 || !self.is(next, ':') {
            out.words.insert(first.to_owned());
        }
        if path.len() > 1 {
            out.paths.push(UsedPath { path, line: self.tokens[at].line });
        }
        next
    }

    fn use_item(&self, at: usize, out: &mut Parsed) -> usize {
        let public = at > 0
            && (self.word(at - 1) == Some("pub")
                || (self.is(at - 1, ')') && self.tokens[..at].iter().rev().any(|token| token.is('('))));
        let mut imports = Vec::new();
        let end = self.use_tree(at + 1, &mut Vec::new(), &mut imports);
        out.imports.extend(imports.into_iter().map(|(path, brings, line)| Import {
            path,
            brings,
            public,
            line,
        }));
        end
    }

    /// Reads one tree of a `use` item; `path` is what leads to it.
    fn use_tree(
        &self,
        start: usize,
        path: &mut Vec<String>,
        out: &mut Vec<(Vec<String>, Brings, usize)>,
    ) -> usize {
        let (mut at, depth) = (start, path.len());
        if self.is_sep(at) {
            // `::name` is another crate's; no module has an empty name.
            path.push(String::new());
            at += 1;
        }
        let line = self.tokens.get(at).map_or(0, |token| token.line);
        while let Some(word) = self.word(at) {
            path.push(word.to_owned());
            at += 1;
            if !self.is_sep(at) {
                break;
            }
            at += 1;
        }
        if self.is(at, '*') {
            out.push((path.clone(), Brings::All, line));
            at += 1;
        } else if self.is(at, '{') {
            let close = self.close(at);
            at += 1;
            while at < close {
                at = self.use_tree(at, path, out).max(at + 1);
                if self.is(at, ',') {
                    at += 1;
                }
            }
            at = close + 1;
        } else if path.len() > depth {
            if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
                // `a::{self}` is `a`.
                path.pop();
            }
            let mut name = path.last().cloned().unwrap_or_default();
            if self.word(at) == Some("as") {
                name = self.word(at + 1).unwrap_or("_").to_owned();
                at += 2;
            }
            out.push((path.clone(), Brings::Name(name), line));
        }
        path.truncate(depth);
        at
    }

    /// Whether the attribute at its bracket is `cfg(test)` or `cfg(all(test, ...))`.
    fn is_for_tests(&self, bracket: usize) -> bool {
        if self.word(bracket + 1) != Some("cfg") {
            return false;
        }
        let inside = &self.tokens[bracket + 2..self.close(bracket).min(self.tokens.len())];
        let words: Vec<_> = inside.iter().filter_map(Token::word).collect();
        words.first() == Some(&"test")
            || (words.first() == Some(&"all") && words.contains(&"test") && !words.contains(&"not"))
    }

    /// Where what begins at `at`, an attribute's item, field, variant or match arm, is over.
    fn behind_item(&self, mut at: usize, end: usize) -> usize {
        while self.is(at, '#') && self.is(at + 1, '[') {
            at = self.close(at + 1) + 1;
        }
        let mut first = at;
        if self.word(first) == Some("pub") {
            first = if self.is(first + 1, '(') { self.close(first + 1) + 1 } else { first + 1 };
        }
        let item = self.word(first).is_some_and(|word| ITEMS.contains(&word)) || self.is(first + 1, '!');
        while at < end {
            match self.tokens[at].kind {
                Kind::Open('{') if item => return self.close(at) + 1,
                Kind::Open(_) => at = self.close(at) + 1,
                Kind::Mark(';') => return at + 1,
                Kind::Mark(',') if !item => return at + 1,
                Kind::Close(_) => return at,
                _ => at += 1,
            }
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(text: &str) -> Vec<String> {
        let show = |import: &Import| {
            let name = match &import.brings {
                Brings::Name(name) => name,
                Brings::All => "*",
            };
            format!("{}{} as {name}", if import.public { "pub " } else { "" }, import.path.join("::"))
        };
        parse(text).imports.iter().map(show).collect()
    }

    #[test]
    fn use_items_become_one_path_a_name() {
        let text = "use crate::{a::{self, B}, c::D as E, f::*};\npub(crate) use super::g;\nuse ::h::I;";
        assert_eq!(
            imports(text),
            [
                "crate::a as a",
                "crate::a::B as B",
                "crate::c::D as E",
                "crate::f as *",
                "pub super::g as g",
                "::h::I as I"
            ]
        );
    }

    #[test]
    fn what_only_tests_compile_does_not_count() {
        let text = "
            use crate::a;
            #[cfg(test)] use crate::b;
            #[cfg(all(test, unix))] fn c() -> crate::d::D { crate::e::f() }
            struct S { #[cfg(test)] field: crate::g::G, other: crate::h::H }
            #[cfg(not(test))] use crate::i;
            #[cfg(test)] mod tests { use crate::j::*; fn k() { crate::l::m() } }
            fn last() { crate::n::o() }";
        assert_eq!(imports(text), ["crate::a as a", "crate::i as i"]);
        let parsed = parse(text);
        let paths: Vec<_> = parsed.paths.iter().map(|used| used.path.join("::")).collect();
        assert_eq!(paths, ["crate::h::H", "crate::n::o"]);
        assert!(parsed.inline.is_empty());
        assert!(parse("#![cfg(test)]\nuse crate::a;").imports.is_empty());
    }

    #[test]
    fn names_of_the_module_are_found_and_those_of_its_functions_are_not() {
        let text = "
            pub(super) const fn f() { struct Inner; fn inner() {} }
            static mut G: u8 = 0; pub struct H { i: u8 } macro_rules! j { () => {} }
            pod! { struct K { l: u8 } }
            unsafe extern \"C\" { fn m(); }
            impl H { pub fn method(&self) {} }
            mod n { pub fn o() {} } mod p;";
        let parsed = parse(text);
        let defined: Vec<_> = parsed.defined.iter().map(String::as_str).collect();
        assert_eq!(defined, ["G", "H", "K", "f", "j", "m"]);
        assert_eq!(parsed.inline.len(), 1);
        assert_eq!(parsed.declared, ["p"]);
    }

    #[test]
    fn words_are_names_that_the_code_uses() {
        let parsed = parse("pub use a::{B, C, D}; fn f(C: u8) -> B { x.D() } fn g() { B::h(); }");
        assert!(parsed.words.contains("B"));
        assert!(!parsed.words.contains("C") && !parsed.words.contains("D") && !parsed.words.contains("f"));
        assert_eq!(parsed.paths, [UsedPath { path: vec!["B".into(), "h".into()], line: 1 }]);
        let pointers = parse("fn f(p: *const crate::A) { for _ in 0..crate::B { &raw const crate::C; } }");
        assert_eq!(pointers.paths.len(), 3, "{:?}", pointers.paths);
    }
}
