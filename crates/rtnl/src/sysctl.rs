//! Edge: the kernel's settings below `/proc/sys/net`, of the calling thread's network namespace.
//!
//! Use [`Netns::run`](crate::Netns::run) for those of another.

use std::fs;
use std::io;
use std::path::PathBuf;

/// Why a setting cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{act} {}", path.display())]
pub struct SysctlError {
    /// What was tried.
    pub act: &'static str,
    /// The setting's file.
    pub path: PathBuf,
    /// The system's answer; "not found" where the kernel or the device does not have the setting.
    pub source: io::Error,
}

/// Reads a setting, such as `&["ipv4", "conf", "eth0", "forwarding"]`.
///
/// The names are given one by one because a device's may have dots in it.
///
/// # Errors
///
/// [`SysctlError`]; "not found" where the kernel or the device does not have the setting.
pub fn read(setting: &[&str]) -> Result<String, SysctlError> {
    let path = path(setting);
    match fs::read_to_string(&path) {
        Ok(value) => Ok(value.trim_end().to_owned()),
        Err(source) => Err(SysctlError { act: "reading", path, source }),
    }
}

/// Writes a setting, also if it has the value already.
///
/// # Errors
///
/// [`SysctlError`]; "not found" where the kernel or the device does not have the setting.
pub fn write(setting: &[&str], value: &str) -> Result<(), SysctlError> {
    let path = path(setting);
    // Not `fs::write`: it would make the file, which on a misspelt name hides the mistake as EACCES.
    let written = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(|source| SysctlError { act: "writing", path, source })
}

/// Writes a setting unless it has the value already, and returns whether it was written.
///
/// Writing some settings has effects even where they do not change.
///
/// # Errors
///
/// [`SysctlError`]; "not found" where the kernel or the device does not have the setting.
pub fn ensure(setting: &[&str], value: &str) -> Result<bool, SysctlError> {
    if read(setting)? == value {
        return Ok(false);
    }
    write(setting, value).map(|()| true)
}

fn path(setting: &[&str]) -> PathBuf {
    ["/proc/sys/net"].iter().chain(setting).collect()
}
