//! SPEC.md lists the specification's rows and the tests that cover them. It names only tests that exist.

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// `module::name` of every test named in the list.
    fn named(list: &str) -> Vec<(&str, &str)> {
        let in_backticks = list.split('`').skip(1).step_by(2);
        in_backticks
            .filter_map(|text| text.split_once("::"))
            .filter(|(module, _)| *module != "module")
            .collect()
    }

    /// Whether a suite's file `module.rs` (or `module/*.rs`) has a test of that name.
    fn exists(suites: &Path, module: &str, name: &str) -> bool {
        let has = |file: &Path| {
            let text = fs::read_to_string(file).unwrap_or_default();
            text.split("#[test]").skip(1).any(|rest| {
                rest.split_once("fn ").is_some_and(|(_, rest)| rest.starts_with(&format!("{name}(")))
            })
        };
        let dirs = fs::read_dir(suites).expect("the suites are there").flatten();
        dirs.map(|dir| dir.path())
            .filter(|dir| dir.is_dir())
            .any(|dir| has(&dir.join(format!("{module}.rs"))))
    }

    #[test]
    fn every_test_the_list_names_exists() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let list = fs::read_to_string(here.join("SPEC.md")).expect("SPEC.md is beside this crate");
        let named = named(&list);
        assert!(named.len() > 80, "only {} tests are named", named.len());
        let missing: Vec<_> =
            named.iter().filter(|(module, name)| !exists(&here.join("tests"), module, name)).collect();
        assert!(missing.is_empty(), "SPEC.md names tests that are not there: {missing:#?}");
    }

    #[test]
    fn a_name_that_is_not_there_is_missed() {
        let suites = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        assert!(exists(&suites, "s2_6_verdicts", "s2_6_cluster_ip_without_endpoints_is_refused"));
        assert!(!exists(&suites, "s2_6_verdicts", "s2_6_cluster_ip"));
        assert_eq!(named("`a::b` and `c` and `module::name` `d::e`"), [("a", "b"), ("d", "e")]);
    }
}
