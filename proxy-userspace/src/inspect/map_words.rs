//! bpftool's grammar for naming a map and a key: `[name] NAME`, `pinned PATH`, and `key [hex] BYTE...`. Pure;
//! called by the map commands.

use std::path::PathBuf;

/// Which map was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapRef {
    /// A name under the pin directory.
    Name(String),
    Pinned(PathBuf),
}

/// Why words are not in the grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    #[error("{0:?} needs a word after it")]
    Incomplete(String),
    #[error(
        "`id` is not understood: opening maps by id needs SYS_ADMIN; name the map, as `shunt map list` shows it"
    )]
    ById,
    #[error("{0:?} is not understood here; the grammar is: {GRAMMAR}")]
    Unexpected(String),
    #[error("no key; the grammar is: {GRAMMAR}")]
    NoKey,
    #[error("{word:?} is not a byte{}", if *hex { " in hexadecimal" } else { " (decimal, 0x hexadecimal or 0 octal)" })]
    BadByte { word: String, hex: bool },
    #[error("the key has {given} bytes, and {map}'s keys have {wanted}")]
    KeyLength { map: String, given: usize, wanted: usize },
}

const GRAMMAR: &str = "[name] NAME | pinned PATH, then for lookup: key [hex] BYTE...";

/// The map that the words begin with, and the words that follow.
pub fn map_of(words: &[String]) -> Result<(MapRef, &[String]), WordsError> {
    let second = |rest: &[String], keyword: &String| {
        rest.first().cloned().ok_or_else(|| WordsError::Incomplete(keyword.clone()))
    };
    let (first, rest) = words.split_first().ok_or(WordsError::NoKey)?;
    match first.as_str() {
        "name" => Ok((MapRef::Name(second(rest, first)?), &rest[1..])),
        "pinned" => Ok((MapRef::Pinned(second(rest, first)?.into()), &rest[1..])),
        "id" => Err(WordsError::ById),
        _ => Ok((MapRef::Name(first.clone()), rest)),
    }
}

/// The map alone, for `dump`.
pub fn map_alone(words: &[String]) -> Result<MapRef, WordsError> {
    let (map, rest) = map_of(words)?;
    rest.first().map_or(Ok(map), |word| Err(WordsError::Unexpected(word.clone())))
}

/// The bytes after `key`, as many as there are.
pub fn key_of(words: &[String]) -> Result<Vec<u8>, WordsError> {
    let bytes = match words.split_first() {
        Some((keyword, rest)) if keyword == "key" => rest,
        Some((other, _)) => return Err(WordsError::Unexpected(other.clone())),
        None => return Err(WordsError::NoKey),
    };
    let (hex, bytes) = match bytes.split_first() {
        Some((keyword, rest)) if keyword == "hex" => (true, rest),
        _ => (false, bytes),
    };
    if bytes.is_empty() {
        return Err(WordsError::NoKey);
    }
    bytes.iter().map(|word| byte(word, hex)).collect()
}

/// One byte as strtoul reads it with base 16, or base 0.
fn byte(word: &str, hex: bool) -> Result<u8, WordsError> {
    let prefixed = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
    let (digits, radix) = match (prefixed, hex) {
        (Some(digits), _) => (digits, 16),
        (None, true) => (word, 16),
        (None, false) if word.len() > 1 && word.starts_with('0') => (&word[1..], 8),
        (None, false) => (word, 10),
    };
    u8::from_str_radix(digits, radix).map_err(|_| WordsError::BadByte { word: word.to_owned(), hex })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn lookup(text: &str) -> Result<(MapRef, Vec<u8>), WordsError> {
        let words = words(text);
        let (map, rest) = map_of(&words)?;
        Ok((map, key_of(rest)?))
    }

    #[test]
    fn both_ways_to_name_a_map_and_write_a_key() {
        let slots = MapRef::Name("SLOTS".into());
        assert_eq!(lookup("name SLOTS key hex 0a 00 00 ff"), Ok((slots.clone(), vec![10, 0, 0, 255])));
        assert_eq!(lookup("SLOTS key 10 0x10 010 0"), Ok((slots.clone(), vec![10, 16, 8, 0])));
        assert_eq!(map_alone(&words("name SLOTS")), Ok(slots));
        assert_eq!(map_alone(&words("pinned /p/M")), Ok(MapRef::Pinned("/p/M".into())));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("name", "\"name\" needs"),
            ("id 4 key 0", "SYS_ADMIN"),
            ("SLOTS", "no key"),
            ("SLOTS key", "no key"),
            ("SLOTS key hex", "no key"),
            ("SLOTS value 1", "\"value\" is not understood"),
            ("SLOTS key 256", "\"256\" is not a byte"),
            ("SLOTS key hex zz", "in hexadecimal"),
        ] {
            let error = lookup(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(map_alone(&words("SLOTS key 1")).is_err());
    }
}
