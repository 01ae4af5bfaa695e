use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// An ext4 file system in a file, mounted through a loop device; needs root. Unmounted when dropped.
pub struct Image {
    file: PathBuf,
    mounted: PathBuf,
}

impl Image {
    /// Makes and mounts one of `bytes` in `directory`.
    ///
    /// # Errors
    /// When this process may not, or has no loop device.
    pub fn create(directory: &Path, name: &str, bytes: u64) -> Result<Self> {
        let file = directory.join(format!("{name}.img"));
        fs::File::create(&file)?.set_len(bytes)?;
        run("mkfs.ext4", &["-q", "-F", "-m", "0", &text(&file)])?;
        Self::mount(file)
    }

    /// Mounts a file. Nothing but fsync makes ext4 write for the next five minutes.
    fn mount(file: PathBuf) -> Result<Self> {
        let mounted = file.with_extension("mount");
        fs::create_dir_all(&mounted)?;
        let hint = "this test needs root and loop devices; elsewhere leave it out, it counts as ignored";
        run("mount", &["-o", "loop,commit=300,noatime", &text(&file), &text(&mounted)]).context(hint)?;
        Ok(Self { file, mounted })
    }

    /// What a power cut now would leave: a copy of what has reached the device, its journal replayed by the mount. The
    /// writer must have been stopped (SIGSTOP).
    ///
    /// # Errors
    /// When the copy cannot be made or mounted.
    pub fn cut(&self, name: &str) -> Result<Self> {
        let copy = self.file.with_file_name(format!("{name}.img"));
        run("cp", &["--sparse=always", &text(&self.file), &text(&copy)])?;
        Self::mount(copy)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mounted
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &[&text(&self.mounted)]) {
            eprintln!("{error:#}");
            return;
        }
        // What is left lies in the test's own temporary directory.
        let _ = fs::remove_file(&self.file);
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn run(program: &str, words: &[&str]) -> Result<()> {
    let output = Command::new(program).args(words).output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
