//! Edge: container images made by the test itself, so that none has to come from a registry.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::run::{sh, state_dir, unique};

/// What holds a pod's namespaces: it waits, and reaps.
const PAUSE: &str = r"
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
    signal(SIGTERM, leave);
    signal(SIGINT, leave);
    signal(SIGCHLD, reap);
    for (;;) pause();
}
";

/// The name of the image that a runtime holds a pod's namespaces with.
pub const PAUSE_IMAGE: &str = "localhost/limpet-test/pause:1";
/// The name of the image with a shell and a web server in it.
pub const BUSYBOX_IMAGE: &str = "localhost/limpet-test/busybox:1";

/// Makes both images and returns the archives, which `ctr images import` reads.
///
/// # Errors
///
/// What could not be read or written.
pub fn make() -> io::Result<[PathBuf; 2]> {
    let dir = state_dir(&unique("images"));
    let pause = dir.join("pause/pause");
    fs::create_dir_all(dir.join("pause"))?;
    fs::write(dir.join("pause.c"), PAUSE)?;
    drop(sh(&format!(
        "gcc -Os -static -s -o {} {}",
        pause.display(),
        dir.join("pause.c").display()
    )));
    let bin = dir.join("busybox/bin");
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(dir.join("busybox/www"))?;
    fs::copy("/bin/busybox", bin.join("busybox"))?;
    for applet in ["sh", "httpd", "hostname"] {
        std::os::unix::fs::symlink("busybox", bin.join(applet))?;
    }
    Ok([
        archive(&dir, "pause", PAUSE_IMAGE, &["/pause"])?,
        archive(&dir, "busybox", BUSYBOX_IMAGE, &["/bin/sh"])?,
    ])
}

/// Packs the directory `name` as the one layer of an image.
fn archive(dir: &Path, name: &str, reference: &str, entrypoint: &[&str]) -> io::Result<PathBuf> {
    let packed = dir.join(format!("{name}.archive"));
    fs::create_dir_all(&packed)?;
    drop(sh(&format!(
        "tar -C {0}/{name} --owner 0 --group 0 -cf {1}/layer.tar .",
        dir.display(),
        packed.display()
    )));
    let digest = sh(&format!("sha256sum < {}/layer.tar | cut -c1-64", packed.display()));
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    fs::write(packed.join("config.json"), config.to_string())?;
    let manifest =
        json!([{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]);
    fs::write(packed.join("manifest.json"), manifest.to_string())?;
    let tar = dir.join(format!("{name}.tar"));
    drop(sh(&format!(
        "tar -C {} -cf {} manifest.json config.json layer.tar",
        packed.display(),
        tar.display()
    )));
    Ok(tar)
}

/// This machine's architecture by the name that images have for it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
