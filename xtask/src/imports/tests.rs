//! The check on small trees made for it.

use std::{env, fs, process};

use super::*;

/// A workspace in a temporary directory, removed when dropped.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let tree = Self(env::temp_dir().join(format!("shunt-xtask-imports-{name}-{}", process::id())));
        tree.write("Cargo.toml", "[workspace]\nmembers = [\"proxy-ebpf\", \"proxy-userspace\"]\n");
        for (path, text) in files {
            tree.write(path, text);
        }
        tree
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn wrong(&self) -> Vec<String> {
        examine(&self.0).unwrap().wrong
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const FLOORS: &str = "# from the top\nmain.rs\nhooks/\nrespond/ conntrack/\nground.rs\n";

/// A datapath that keeps its floors, with re-exports, paths in macros and everything below used from above.
fn datapath(name: &str) -> Tree {
    Tree::new(
        name,
        &[
            ("proxy-ebpf/floors.txt", FLOORS),
            (
                "proxy-ebpf/src/main.rs",
                "mod hooks; mod respond; mod conntrack; mod ground;\nfn entry() { hooks::ingress() }\n",
            ),
            (
                "proxy-ebpf/src/hooks/mod.rs",
                "pub use ingress::ingress;\npub(crate) mod ingress;\nmod limits;\n",
            ),
            (
                "proxy-ebpf/src/hooks/ingress.rs",
                "use super::limits::LIMIT;\nuse crate::conntrack::{self, Entry};\n\
                 pub fn ingress() -> Entry { log!(crate::respond::reset(LIMIT)); conntrack::touch() }\n",
            ),
            ("proxy-ebpf/src/hooks/limits.rs", "pub const LIMIT: u8 = 1;\n"),
            ("proxy-ebpf/src/respond/mod.rs", "use crate::ground::*;\npub fn reset(n: u8) { VERDICT }\n"),
            (
                "proxy-ebpf/src/conntrack/mod.rs",
                "mod entry;\npub use self::entry::{Entry, touch};\n#[cfg(test)]\nmod tests { use crate::hooks::ingress; }\n",
            ),
            ("proxy-ebpf/src/conntrack/entry.rs", "pub struct Entry;\npub fn touch() -> Entry { Entry }\n"),
            ("proxy-ebpf/src/ground.rs", "pub static VERDICT: u8 = 0;\n"),
        ],
    )
}

#[test]
fn floors_that_are_kept_pass() {
    let tree = datapath("kept");
    let report = examine(&tree.0).unwrap();
    assert_eq!(report.wrong, [""; 0]);
    assert_eq!((report.crates, report.files), (1, 8));
    assert_eq!(report.floors.len(), 4);
    assert!(report.floors[2].contains("respond/ conntrack/") && report.floors[2].ends_with(" 3 files"));
}

#[test]
fn an_upward_import_is_named_with_its_line_and_both_floors() {
    let tree = datapath("upward");
    tree.write("proxy-ebpf/src/ground.rs", "pub static VERDICT: u8 = 0;\n\nuse crate::conntrack::Entry;\n");
    // Found behind the re-export: the file that defines the name.
    assert_eq!(
        tree.wrong(),
        ["proxy-ebpf/src/ground.rs:3: upward import of conntrack/entry.rs (`crate::conntrack::Entry`), \
             from floor 4 `ground.rs` to floor 3 `conntrack/`"]
    );
}

#[test]
fn an_upward_path_in_a_macro_is_caught() {
    let tree = datapath("macro");
    tree.write(
        "proxy-ebpf/src/ground.rs",
        "pub static VERDICT: u8 = 0;\nmacro_rules! count { () => { $crate::hooks::limits::LIMIT } }\n",
    );
    let wrong = tree.wrong();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].contains("ground.rs:2: upward import of hooks/limits.rs"), "{wrong:?}");
}

#[test]
fn a_re_export_from_above_is_upward() {
    let tree = datapath("pub-use");
    tree.write("proxy-ebpf/src/ground.rs", "pub static VERDICT: u8 = 0;\npub use crate::conntrack::Entry;\n");
    assert!(tree.wrong()[0].contains("ground.rs:2: upward import of conntrack/entry.rs"));
}

#[test]
fn a_sideways_import_is_an_error() {
    let tree = datapath("sideways");
    tree.write("proxy-ebpf/src/respond/mod.rs", "pub fn reset(n: u8) { crate::conntrack::touch(); }\n");
    assert_eq!(
        tree.wrong(),
        [
            "proxy-ebpf/src/respond/mod.rs:1: sideways import of conntrack/entry.rs (`crate::conntrack::touch`), \
             from floor 3 `respond/` to floor 3 `conntrack/`"
        ]
    );
}

#[test]
fn a_file_on_no_floor_and_a_floor_without_files_are_errors() {
    let tree = datapath("none");
    tree.write("proxy-ebpf/src/stray.rs", "");
    tree.write("proxy-ebpf/floors.txt", &format!("{FLOORS}maps.rs\n"));
    assert_eq!(
        tree.wrong(),
        [
            "proxy-ebpf/src/stray.rs: is on no floor",
            "`maps.rs` of the list is no file and no folder with files"
        ]
    );
    fs::remove_file(tree.0.join("proxy-ebpf/floors.txt")).unwrap();
    assert!(tree.wrong()[0].starts_with("reading proxy-ebpf/floors.txt"));
}

#[test]
fn a_circle_of_files_is_named_file_by_file() {
    let tree = Tree::new(
        "circle",
        &[
            ("proxy-userspace/src/lib.rs", "mod a;\npub use a::A;\n"),
            ("proxy-userspace/src/a/mod.rs", "mod b;\nmod c;\nmod d;\npub struct A;\npub use b::B;\n"),
            ("proxy-userspace/src/a/b.rs", "use super::c::C;\npub struct B(C);\n"),
            ("proxy-userspace/src/a/c.rs", "\nuse super::B;\npub struct C(Option<Box<B>>, super::A);\n"),
            ("proxy-userspace/src/a/d.rs", "use super::{A, B, c::C};\n"),
        ],
    );
    assert_eq!(
        tree.wrong(),
        [
            "circle of files: proxy-userspace/src/a/b.rs:1 `super::c::C` -> proxy-userspace/src/a/c.rs:2 `super::B` -> \
             proxy-userspace/src/a/b.rs"
        ]
    );
    // `mod.rs` that uses a child which uses what `mod.rs` defines: the whole ring is one circle.
    tree.write(
        "proxy-userspace/src/a/mod.rs",
        "mod b;\nmod c;\nmod d;\npub struct A;\npub use b::B;\nfn f(b: B) {}\n",
    );
    let wrong = tree.wrong();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].contains("3 files lead to each other"), "{wrong:?}");
}

#[test]
fn code_for_tests_closes_no_circle() {
    let tree = Tree::new(
        "tests",
        &[
            ("proxy-userspace/src/lib.rs", "mod a;\nmod b;\n"),
            ("proxy-userspace/src/a.rs", "use crate::b::B;\npub struct A(B);\n"),
            (
                "proxy-userspace/src/b.rs",
                "pub struct B;\n#[cfg(test)]\nuse crate::a::A;\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n\
                 // use crate::a::A;\nconst TEXT: &str = \"crate::a::A\";\n",
            ),
        ],
    );
    assert_eq!(tree.wrong(), [""; 0]);
}

#[test]
fn modules_form_a_circle_where_their_files_do_not() {
    let tree = Tree::new(
        "modules",
        &[
            ("proxy-userspace/src/lib.rs", "mod a;\nmod b;\n"),
            ("proxy-userspace/src/a/mod.rs", "pub mod high;\npub mod low;\n"),
            ("proxy-userspace/src/a/high.rs", "use crate::b::B;\n"),
            ("proxy-userspace/src/a/low.rs", "pub struct Low;\n"),
            ("proxy-userspace/src/b.rs", "use crate::a::low;\npub struct B(low::Low);\n"),
        ],
    );
    assert_eq!(
        tree.wrong(),
        ["circle of modules: a (proxy-userspace/src/a/high.rs:1 `crate::b::B`) -> \
             b (proxy-userspace/src/b.rs:2 `low::Low`) -> a"]
    );
}
