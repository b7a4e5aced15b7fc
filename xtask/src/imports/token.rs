//! Rust source as words and marks: comments, strings, characters and lifetimes are gone. Not a grammar: `parse` finds
//! the items in it.

/// A token that matters for imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An identifier, a keyword or a number.
    Word(String),
    /// `::`
    PathSep,
    /// `(`, `[` or `{`.
    Open(char),
    Close(char),
    /// Any other character.
    Mark(char),
    /// A string or a character.
    Literal,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    /// From 1.
    pub line: usize,
}

impl Token {
    pub fn word(&self) -> Option<&str> {
        match &self.kind {
            Kind::Word(word) => Some(word),
            _ => None,
        }
    }

    pub fn is(&self, mark: char) -> bool {
        matches!(self.kind, Kind::Mark(it) | Kind::Open(it) | Kind::Close(it) if it == mark)
    }
}

/// All tokens of a file.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut reader = Reader { chars: text.chars().collect(), at: 0, line: 1 };
    let mut out = Vec::new();
    while let Some(c) = reader.peek(0) {
        let line = reader.line;
        if let Some(kind) = reader.token(c) {
            out.push(Token { kind, line });
        }
    }
    out
}

struct Reader {
    chars: Vec<char>,
    at: usize,
    line: usize,
}

impl Reader {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            if self.peek(0) == Some('\n') {
                self.line += 1;
            }
            self.at += 1;
        }
    }

    /// Consumes at least one character; none for what is left out.
    fn token(&mut self, c: char) -> Option<Kind> {
        match (c, self.peek(1)) {
            ('/', Some('/')) => {
                while self.peek(0).is_some_and(|c| c != '\n') {
                    self.skip(1);
                }
                None
            }
            ('/', Some('*')) => {
                self.block_comment();
                None
            }
            (':', Some(':')) => {
                self.skip(2);
                Some(Kind::PathSep)
            }
            ('"', _) => Some(self.string()),
            ('\'', _) => self.quote(),
            _ if c.is_alphanumeric() || c == '_' => Some(self.word()),
            _ => {
                self.skip(1);
                match c {
                    '(' | '[' | '{' => Some(Kind::Open(c)),
                    ')' | ']' | '}' => Some(Kind::Close(c)),
                    _ if c.is_whitespace() => None,
                    _ => Some(Kind::Mark(c)),
                }
            }
        }
    }

    /// Block comments nest.
    fn block_comment(&mut self) {
        let mut depth = 0;
        while let Some(c) = self.peek(0) {
            match (c, self.peek(1)) {
                ('/', Some('*')) => depth += 1,
                ('*', Some('/')) => depth -= 1,
                _ => {
                    self.skip(1);
                    continue;
                }
            }
            self.skip(2);
            if depth == 0 {
                return;
            }
        }
    }

    fn string(&mut self) -> Kind {
        self.skip(1);
        while let Some(c) = self.peek(0) {
            self.skip(if c == '\\' { 2 } else { 1 });
            if c == '"' {
                break;
            }
        }
        Kind::Literal
    }

    /// `'a'` and `'\n'` are characters, `'a` is a lifetime.
    fn quote(&mut self) -> Option<Kind> {
        match (self.peek(1), self.peek(2)) {
            (Some('\\'), _) => {
                // The backslash and what it escapes, then up to the closing quote: '\u{1b}'.
                self.skip(3);
                while self.peek(0).is_some_and(|c| c != '\'') {
                    self.skip(1);
                }
                self.skip(1);
                Some(Kind::Literal)
            }
            (Some(_), Some('\'')) => {
                self.skip(3);
                Some(Kind::Literal)
            }
            _ => {
                self.skip(1);
                while self.peek(0).is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    self.skip(1);
                }
                None
            }
        }
    }

    /// A word, or the string that a prefix (`b`, `r#`, ...) opens.
    fn word(&mut self) -> Kind {
        let start = self.at;
        while self.peek(0).is_some_and(|c| c.is_alphanumeric() || c == '_') {
            self.skip(1);
        }
        let word: String = self.chars[start..self.at].iter().collect();
        let hashes = (0..).take_while(|ahead| self.peek(*ahead) == Some('#')).count();
        let quoted = self.peek(hashes) == Some('"');
        match word.as_str() {
            "r" | "br" | "cr" if quoted => self.raw_string(hashes),
            "b" | "c" if hashes == 0 && quoted => self.string(),
            "b" if self.peek(0) == Some('\'') => self.quote().unwrap_or(Kind::Literal),
            // r#type is the word `type`.
            "r" if hashes == 1 => {
                self.skip(1);
                self.word()
            }
            _ => Kind::Word(word),
        }
    }

    fn raw_string(&mut self, hashes: usize) -> Kind {
        self.skip(hashes + 1);
        while let Some(c) = self.peek(0) {
            let closes = c == '"' && (1..=hashes).all(|ahead| self.peek(ahead) == Some('#'));
            self.skip(if closes { hashes + 1 } else { 1 });
            if closes {
                break;
            }
        }
        Kind::Literal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_lifetimes_are_no_words() {
        let text =
            "a // crate::b\n/* c /* d */ e */ \"f \\\" g\" r#\"h \" i\"# b'j' '\\'' 'k' &'l m b\"n\" r#type";
        let words: Vec<_> = tokens(text).iter().filter_map(|token| token.word().map(str::to_owned)).collect();
        assert_eq!(words, ["a", "m", "type"]);
    }

    #[test]
    fn lines_are_counted_through_comments_and_strings() {
        let text = "/*\n\n*/ \"\n\" a::b\nc";
        let found = tokens(text);
        let line = |word: &str| found.iter().find(|token| token.word() == Some(word)).unwrap().line;
        assert_eq!((line("a"), line("b"), line("c")), (4, 4, 5));
        assert!(found.iter().any(|token| token.kind == Kind::PathSep));
    }
}
