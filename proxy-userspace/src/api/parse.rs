//! From a document, or the API server's text, to the API's shape of an object; errors carry the field's path.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::field_error::{FieldError, Reason};

pub fn read<T: DeserializeOwned>(value: Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(shape)
}

pub fn read_text<T: DeserializeOwned>(text: &str) -> Result<T, FieldError> {
    let mut json = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut json).map_err(shape)
}

fn shape(error: serde_path_to_error::Error<serde_json::Error>) -> FieldError {
    let path = match error.path().to_string() {
        path if path == "." => String::new(),
        path => path,
    };
    FieldError { path, reason: Reason::Shape(error.into_inner().to_string()) }
}
