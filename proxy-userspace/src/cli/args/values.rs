//! Parsers of single values that several flags share. A rejected value is reported by clap with its flag.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};

use crate::{inspect::services::split_name, top::sort::SortKey};

/// A path that may be empty, as in `--config=`. clap's own path parser rejects an empty one; kube-proxy treats it as a
/// flag that is not given, and so does the merge of flags and file.
pub(super) fn path_or_empty() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// A column of `shunt top` by name.
pub(super) fn sort_key() -> impl TypedValueParser<Value = SortKey> {
    let names = PossibleValuesParser::new(SortKey::ALL.map(SortKey::name));
    names.try_map(|name| SortKey::from_name(&name).ok_or("no such column"))
}

/// `NAMESPACE/NAME`, rejected before any map is read.
pub(super) fn service_name(text: &str) -> Result<String, String> {
    match split_name(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A boolean as Go's strconv.ParseBool reads it.
pub(super) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("give true or false".to_owned()),
    }
}

/// Whether a glob can match a device name. Device names contain neither a slash nor white space (kernel:
/// dev_valid_name), so a glob with one of them never matches.
pub fn is_device_glob(glob: &str) -> bool {
    !glob.is_empty() && !glob.contains(|c: char| c == '/' || c.is_whitespace())
}
