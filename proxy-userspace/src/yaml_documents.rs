//! Splits a YAML file into documents: an invalid document does not affect the others.

use std::fmt;

use serde_json::Value;

/// One document of a file.
#[derive(Debug)]
pub struct Document {
    pub place: Place,
    /// The parser's message if it is not YAML.
    pub value: Result<Value, String>,
}

/// The position of a document in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Counted from 1; empty documents do not count.
    pub number: usize,
    /// The line it begins on, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {} (line {})", self.number, self.line)
    }
}

/// The documents of a YAML file; JSON is YAML.
pub fn parse(text: &str) -> Vec<Document> {
    let documents = split(text).into_iter().enumerate();
    let parsed = documents.map(|(i, (line, text))| {
        let place = Place { number: i + 1, line };
        Document { place, value: parse_one(text, line) }
    });
    parsed.collect()
}

/// Splits at the markers. `---` at the beginning of a line is always a marker: no scalar may contain it there.
fn split(text: &str) -> Vec<(usize, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let is_marker = |marker: &str| {
            let rest = line.strip_prefix(marker);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        if is_marker("---") {
            documents.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, i + 1);
        } else if is_marker("...") {
            documents.push((start_line, &text[start..offset]));
            (start, start_line) = (offset + line.len(), i + 2);
        }
        offset += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents.retain(|(_, text)| holds_something(text));
    documents
}

/// Whether there is more than comments, directives and markers.
fn holds_something(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        !(line.is_empty() || line.starts_with(['#', '%']))
    })
}

fn parse_one(text: &str, line: usize) -> Result<Value, String> {
    let mut options = serde_saphyr::Options::default();
    // Trusted input: a dump of a cluster exceeds the default limits.
    options.budget = None;
    options.with_snippet = false;
    // YAML 1.2: a Service may be called `y` or `on`.
    options.strict_booleans = true;
    serde_saphyr::from_str_with_options(text, options.clone()).map_err(|error| {
        // Parsed again with the preceding lines, so that the message has the file's line numbers.
        let padded = "\n".repeat(line - 1) + text;
        let again = serde_saphyr::from_str_with_options::<Value>(&padded, options);
        let message = again.err().unwrap_or(error).to_string();
        message.split_whitespace().collect::<Vec<_>>().join(" ")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(text: &str) -> Vec<(usize, usize)> {
        parse(text).iter().map(|document| (document.place.number, document.place.line)).collect()
    }

    #[test]
    fn documents_are_counted_where_they_hold_something() {
        assert_eq!(lines("a: 1\n---\nb: 2\n"), [(1, 1), (2, 2)]);
        assert_eq!(lines("---\n# nothing\n---\na: 1\n...\n---\nb: 2"), [(1, 3), (2, 6)]);
        assert_eq!(lines("%YAML 1.2\n---\na: 1\n"), [(1, 2)]);
        assert_eq!(lines("\u{feff}a: 1\r\n--- # next\r\nb: 2\r\n"), [(1, 1), (2, 2)]);
        assert_eq!(lines(""), []);
        assert_eq!(lines("a: |\n  ---\n  text\nb: ---x\n"), [(1, 1)]);
    }

    #[test]
    fn a_broken_document_is_alone() {
        let documents = parse("a: 1\n---\nb: [1\n---\nc: 3\n");
        assert_eq!(documents[0].value.as_ref().unwrap(), &json!({"a": 1}));
        let error = documents[1].value.as_ref().unwrap_err();
        assert!(error.contains("line 3") || error.contains("line 4"), "{error}");
        assert!(!error.contains('\n'));
        assert_eq!(documents[2].value.as_ref().unwrap(), &json!({"c": 3}));
    }

    #[test]
    fn scalars_keep_what_they_are() {
        let text = "port: 80\ntext: \"80\"\nip: 10.68.0.1\ntime: 2026-01-02T03:04:05Z\nnothing: null\nflag: true\nver: y\n";
        let want = json!({"port": 80, "text": "80", "ip": "10.68.0.1", "time": "2026-01-02T03:04:05Z",
            "nothing": null, "flag": true, "ver": "y"});
        assert_eq!(parse(text)[0].value.as_ref().unwrap(), &want);
        let json_text = "{\"kind\": \"List\",\n\t\"items\": [1, \"a\"]}\n";
        assert_eq!(parse(json_text)[0].value.as_ref().unwrap(), &json!({"kind": "List", "items": [1, "a"]}));
    }
}
