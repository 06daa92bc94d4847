//! Edge: golden files of what is printed; `UPDATE=1` rewrites them.

use std::path::PathBuf;
use std::{env, fs};

/// Compares `text` with `src/golden/<name>.txt`.
///
/// # Panics
///
/// If they differ, or if there is no such file yet.
pub(crate) fn check(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("src/golden/{name}.txt"));
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{} differs; UPDATE=1 rewrites it", path.display());
}
