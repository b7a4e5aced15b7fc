//! Paths of repository files that the harness reads: manifests, and programs that cargo built.

use std::path::{Path, PathBuf};

/// The workspace directory.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
