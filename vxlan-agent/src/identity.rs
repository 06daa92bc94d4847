//! Edge: who this host is: its installation, on disk, and its boot, in a directory that is empty after each.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use limpet_net_types::Token;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// The system says no.
    #[error("cannot {act} {}", path.display())]
    File { act: &'static str, path: PathBuf, source: io::Error },
    /// A file that somebody has written into.
    #[error(
        "{} does not hold 32 hexadecimal digits: restore it, or remove it to join as a new installation",
        .0.display()
    )]
    Damaged(PathBuf),
}

/// 128 random bits.
pub(crate) fn random() -> Result<Token, IdentityError> {
    let path = Path::new("/dev/urandom");
    let mut bits = [0; 16];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut bits));
    read.map_err(failed("read", path))?;
    Ok(Token::from_bits(u128::from_ne_bytes(bits)))
}

/// The token in a file, which is made with a random one if it is absent.
pub(crate) fn token_in(path: &Path) -> Result<Token, IdentityError> {
    match fs::read_to_string(path) {
        Ok(text) => text.trim_end().parse().map_err(|_| IdentityError::Damaged(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Whole or not at all: a machine that loses power meanwhile finds no half of it.
fn make(path: &Path) -> Result<Token, IdentityError> {
    let token = random()?;
    if let Some(directory) = path.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
        made.map_err(failed("make the directory", directory))?;
    }
    let draft = path.with_extension("new");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| {
            writeln!(file, "{token}")?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&draft, path));
    written.map_err(failed("write", path))?;
    Ok(token)
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::File { act, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_is_made_once_and_for_root_alone() {
        let directory = std::env::temp_dir().join(format!("limpet-{}", random().unwrap()));
        let path = directory.join("deep/install-id");
        let token = token_in(&path).unwrap();
        assert_eq!(token_in(&path).unwrap(), token);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "half").unwrap();
        assert!(matches!(token_in(&path), Err(IdentityError::Damaged(_))));
        fs::remove_dir_all(&directory).unwrap();
    }
}
