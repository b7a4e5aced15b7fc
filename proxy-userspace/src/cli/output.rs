//! Output of a command: the selected format, and JSON and YAML of any view. Every printer writes into an `impl Write`, so
//! that tests see the same text as users. [`crate::inspect::table`] draws tables.

use std::io::{self, Write};

use serde::Serialize;

use super::{
    args::{GlobalArgs, OutputFormat},
    failure::Failure,
};

/// The combination of `-o`, `-j`, `-p` and `--no-headers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    pub format: Format,
    pub headers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Table,
    Wide,
    JsonCompact,
    JsonPretty,
    Yaml,
}

impl Output {
    pub fn new(args: &GlobalArgs) -> Self {
        let format = match args.output {
            _ if args.pretty => Format::JsonPretty,
            _ if args.json => Format::JsonCompact,
            OutputFormat::Table => Format::Table,
            OutputFormat::Wide => Format::Wide,
            OutputFormat::Json => Format::JsonPretty,
            OutputFormat::Yaml => Format::Yaml,
        };
        Self { format, headers: !args.no_headers }
    }

    /// For a command that prints a stream of documents: one line of JSON each, unless -p is given.
    pub fn of_stream(args: &GlobalArgs) -> Self {
        match Self::new(args) {
            output if output.format == Format::JsonPretty && !args.pretty => {
                Self { format: Format::JsonCompact, ..output }
            }
            output => output,
        }
    }

    pub fn wide(&self) -> bool {
        self.format == Format::Wide
    }

    /// Runs a printer on stdout.
    pub fn print(
        &self,
        printer: impl FnOnce(&mut io::BufWriter<io::StdoutLock<'static>>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        printer(&mut out)?;
        out.flush()?;
        Ok(())
    }

    /// Prints `value` if a data format is selected, else the output of `human`.
    pub fn print_view(
        &self,
        value: &impl Serialize,
        human: impl FnOnce(&mut io::BufWriter<io::StdoutLock<'static>>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        self.print(|out| if self.print_data_into(out, value)? { Ok(()) } else { human(out) })
    }

    /// Writes `value` in the selected data format; `false` if the format is a table.
    pub fn print_data_into(&self, out: &mut impl Write, value: &impl Serialize) -> io::Result<bool> {
        match self.format {
            Format::Table | Format::Wide => return Ok(false),
            Format::JsonCompact => serde_json::to_writer(&mut *out, value)?,
            Format::JsonPretty => serde_json::to_writer_pretty(&mut *out, value)?,
            Format::Yaml => {
                let text = serde_saphyr::to_string(value).map_err(io::Error::other)?;
                return out.write_all(text.trim_end().as_bytes()).and_then(|()| writeln!(out)).map(|()| true);
            }
        }
        writeln!(out)?;
        Ok(true)
    }
}

/// Whether to use colours on stdout: it is a terminal, and neither NO_COLOR nor TERM=dumb is set.
pub fn colour_on_stdout() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(print: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn data_formats() {
        let value = serde_json::json!([{"a": 1}]);
        let print = |format| {
            text(|out| {
                Output { format, headers: true }.print_data_into(out, &value).map(|done| assert!(done))
            })
        };
        assert_eq!(print(Format::JsonCompact), "[{\"a\":1}]\n");
        assert_eq!(print(Format::JsonPretty), "[\n  {\n    \"a\": 1\n  }\n]\n");
        assert_eq!(print(Format::Yaml), "- a: 1\n");
        let table = Output { format: Format::Table, headers: true };
        assert!(!table.print_data_into(&mut Vec::new(), &value).unwrap());
    }
}
