//! Archives of small files (POSIX.1-1988 ustar), in memory: a header of 512 bytes and the content, padded, for each.

const BLOCK_BYTES: usize = 512;

/// An archive that grows.
pub(super) struct Archive {
    /// Before each name.
    directory: String,
    /// Of every file, seconds since 1970.
    time_s: u64,
    bytes: Vec<u8>,
}

impl Archive {
    /// An empty archive. `directory`, of at most 60 bytes, is what it unpacks into.
    pub(super) fn new(directory: String, time_s: u64) -> Self {
        Self { directory, time_s, bytes: Vec::new() }
    }

    /// Adds a file with mode 0600; its name has at most 38 bytes.
    pub(super) fn add(&mut self, name: &str, content: &[u8]) {
        let mut header = [0; BLOCK_BYTES];
        let mut field = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        field(0, &format!("{}/{name}", self.directory));
        field(100, "0000600\0");
        field(108, "0000000\0");
        field(116, "0000000\0");
        field(124, &format!("{:011o}\0", content.len()));
        field(136, &format!("{:011o}\0", self.time_s));
        // The checksum is taken with blanks in its own place.
        field(148, "        ");
        field(156, "0");
        field(257, "ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(header);
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
    }

    /// The whole archive: two empty blocks are its end.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK_BYTES, 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tar_unpacks_what_was_packed() {
        let mut archive = Archive::new("d".into(), 1_700_000_000);
        let contents: [(&str, Vec<u8>); 3] = [("empty", vec![]), ("block", vec![7; 512]), ("more", vec![9; 513])];
        contents.iter().for_each(|(name, content)| archive.add(name, content));
        let directory = tempfile::tempdir().expect("a directory");
        let mut tar = Command::new("tar")
            .args(["-x", "-f", "-", "-C"])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("tar is on every Debian");
        tar.stdin.take().expect("piped").write_all(&archive.finish()).expect("written");
        assert!(tar.wait().expect("tar ends").success(), "tar has something to say against it");
        for (name, content) in contents {
            let got = std::fs::read(directory.path().join("d").join(name)).expect(name);
            assert_eq!(got, content, "{name}");
        }
    }
}
