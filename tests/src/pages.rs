//! The documentation pages: their links lead to existing files and headings, and the index of decisions lists every
//! record.

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use crate::net::repository::repository;

    /// Every page of the repository.
    fn pages() -> Vec<PathBuf> {
        let root = repository();
        let folders = ["", "docs", "docs/design", "docs/decisions", "manifests", "tests"];
        let entries = folders.iter().flat_map(|folder| {
            let folder = root.join(folder);
            fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).flatten()
        });
        entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|it| it == "md"))
            .collect()
    }

    /// The relative links of a page.
    fn links(text: &str) -> Vec<&str> {
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        targets.filter(|target| !target.contains("://")).collect()
    }

    /// A heading's anchor in links.
    fn anchor(heading: &str) -> String {
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    }

    /// The reason why a link of `page` is broken.
    fn fault(page: &Path, link: &str) -> Option<String> {
        let (file, heading) = link.split_once('#').unwrap_or((link, ""));
        let target = if file.is_empty() { page.to_owned() } else { page.with_file_name(file) };
        if !target.exists() {
            return Some(format!("{}: {link}: no such file", page.display()));
        }
        if heading.is_empty() {
            return None;
        }
        let text = fs::read_to_string(&target).unwrap_or_default();
        let mut headings = text.lines().filter(|line| line.starts_with('#'));
        let found = headings.any(|line| anchor(line.trim_start_matches('#')) == heading);
        (!found).then(|| format!("{}: {link}: no such heading", page.display()))
    }

    #[test]
    fn links_lead_to_files_and_headings() {
        let mut seen = 0;
        let mut faults = Vec::new();
        for page in pages() {
            let text = fs::read_to_string(&page).expect("a page can be read");
            for link in links(&text) {
                seen += 1;
                faults.extend(fault(&page, link));
            }
        }
        assert!(seen > 100, "only {seen} links were found");
        assert!(faults.is_empty(), "{faults:#?}");
    }

    #[test]
    fn a_link_to_nothing_is_found() {
        let page = repository().join("README.md");
        assert_eq!(links("[a](b.md#c) [d](https://e) [f](g)"), ["b.md#c", "g"]);
        assert!(fault(&page, "no-such-page.md").is_some());
        assert!(fault(&page, "ARCHITECTURE.md#no-such-heading").is_some());
        assert_eq!(fault(&page, "ARCHITECTURE.md#the-map-contract"), None);
    }

    #[test]
    fn every_decision_is_in_the_index() {
        let folder = repository().join("docs/decisions");
        let index = fs::read_to_string(folder.join("README.md")).expect("the index is there");
        let names =
            fs::read_dir(&folder).expect("the folder is there").flatten().map(|entry| entry.file_name());
        let records: Vec<String> = names
            .filter_map(|name| name.into_string().ok())
            .filter(|name| name.starts_with(|c: char| c.is_ascii_digit()))
            .collect();
        assert!(records.len() > 50, "only {} records", records.len());
        for record in records {
            assert_eq!(index.matches(&format!("({record})")).count(), 1, "{record}");
        }
    }
}
