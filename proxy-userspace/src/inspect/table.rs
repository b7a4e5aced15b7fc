//! Tables in kubectl's style: columns as wide as their content, no borders.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};

/// Writes rows in columns, three spaces apart. Without rows only the header is written, so that a script can always skip
/// one line.
pub fn print_table_into(
    out: &mut impl Write,
    headers: bool,
    header: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if headers {
        table.add_row(header);
    }
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
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
    fn columns_are_aligned_and_headers_optional() {
        let rows = || [vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), "2".to_owned()]];
        assert_eq!(
            text(|out| print_table_into(out, true, &["NAME", "N"], rows())),
            "NAME   N\na      1\nlong   2\n"
        );
        assert_eq!(text(|out| print_table_into(out, false, &["NAME", "N"], rows())), "a      1\nlong   2\n");
        assert_eq!(text(|out| print_table_into(out, false, &["NAME", "N"], [])), "");
    }
}
