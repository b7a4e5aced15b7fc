//! Where the files of the repository lie, which the harness reads: manifests, and what cargo built.

use std::path::{Path, PathBuf};

/// The directory of the workspace.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
