//! The arguments of `shunt map dump|lookup` in bpftool's syntax: `[name] NAME`, `pinned PATH`, and `key [hex] BYTE...`. Pure.

use std::path::PathBuf;

/// The map that the arguments select.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapRef {
    /// A name under the pin directory.
    Name(String),
    Pinned(PathBuf),
}

/// Arguments that do not match the syntax.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapArgsError {
    #[error("{0:?} needs an argument")]
    Incomplete(String),
    #[error(
        "`id` is not supported: opening maps by id needs CAP_SYS_ADMIN; use a name from `shunt map list`"
    )]
    ById,
    #[error("unexpected {0:?}; the syntax is: {SYNTAX}")]
    Unexpected(String),
    #[error("no key; the syntax is: {SYNTAX}")]
    NoKey,
    #[error("{word:?} is not a byte{}", if *hex { " in hexadecimal" } else { " (decimal, 0x hexadecimal or 0 octal)" })]
    BadByte { word: String, hex: bool },
    #[error("the key has {given} bytes, but keys of {map} have {wanted}")]
    KeyLength { map: String, given: usize, wanted: usize },
}

const SYNTAX: &str = "[name] NAME | pinned PATH, then for lookup: key [hex] BYTE...";

/// The map, and the remaining arguments.
pub fn map_and_rest(words: &[String]) -> Result<(MapRef, &[String]), MapArgsError> {
    let second = |rest: &[String], keyword: &String| {
        rest.first().cloned().ok_or_else(|| MapArgsError::Incomplete(keyword.clone()))
    };
    let (first, rest) = words.split_first().ok_or(MapArgsError::NoKey)?;
    match first.as_str() {
        "name" => Ok((MapRef::Name(second(rest, first)?), &rest[1..])),
        "pinned" => Ok((MapRef::Pinned(second(rest, first)?.into()), &rest[1..])),
        "id" => Err(MapArgsError::ById),
        _ => Ok((MapRef::Name(first.clone()), rest)),
    }
}

/// The arguments of `dump`: only a map.
pub fn map_only(words: &[String]) -> Result<MapRef, MapArgsError> {
    let (map, rest) = map_and_rest(words)?;
    rest.first().map_or(Ok(map), |word| Err(MapArgsError::Unexpected(word.clone())))
}

/// The bytes after `key`.
pub fn key_of(words: &[String]) -> Result<Vec<u8>, MapArgsError> {
    let bytes = match words.split_first() {
        Some((keyword, rest)) if keyword == "key" => rest,
        Some((other, _)) => return Err(MapArgsError::Unexpected(other.clone())),
        None => return Err(MapArgsError::NoKey),
    };
    let (hex, bytes) = match bytes.split_first() {
        Some((keyword, rest)) if keyword == "hex" => (true, rest),
        _ => (false, bytes),
    };
    if bytes.is_empty() {
        return Err(MapArgsError::NoKey);
    }
    bytes.iter().map(|word| byte(word, hex)).collect()
}

/// One byte, parsed like strtoul with base 16 or base 0.
fn byte(word: &str, hex: bool) -> Result<u8, MapArgsError> {
    let prefixed = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
    let (digits, radix) = match (prefixed, hex) {
        (Some(digits), _) => (digits, 16),
        (None, true) => (word, 16),
        (None, false) if word.len() > 1 && word.starts_with('0') => (&word[1..], 8),
        (None, false) => (word, 10),
    };
    u8::from_str_radix(digits, radix).map_err(|_| MapArgsError::BadByte { word: word.to_owned(), hex })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn lookup(text: &str) -> Result<(MapRef, Vec<u8>), MapArgsError> {
        let words = words(text);
        let (map, rest) = map_and_rest(&words)?;
        Ok((map, key_of(rest)?))
    }

    #[test]
    fn maps_by_name_and_path_and_keys_in_both_notations() {
        let slots = MapRef::Name("SLOTS".into());
        assert_eq!(lookup("name SLOTS key hex 0a 00 00 ff"), Ok((slots.clone(), vec![10, 0, 0, 255])));
        assert_eq!(lookup("SLOTS key 10 0x10 010 0"), Ok((slots.clone(), vec![10, 16, 8, 0])));
        assert_eq!(map_only(&words("name SLOTS")), Ok(slots));
        assert_eq!(map_only(&words("pinned /p/M")), Ok(MapRef::Pinned("/p/M".into())));
    }

    #[test]
    fn errors_name_the_argument() {
        for (text, word) in [
            ("name", "\"name\" needs"),
            ("id 4 key 0", "SYS_ADMIN"),
            ("SLOTS", "no key"),
            ("SLOTS key", "no key"),
            ("SLOTS key hex", "no key"),
            ("SLOTS value 1", "unexpected \"value\""),
            ("SLOTS key 256", "\"256\" is not a byte"),
            ("SLOTS key hex zz", "in hexadecimal"),
        ] {
            let error = lookup(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(map_only(&words("SLOTS key 1")).is_err());
    }
}
