//! The ustar format (POSIX.1-1988, tar(5)), as much as an image needs: files and directories of root, without times.

use anyhow::{Context, Result, bail};

const BLOCK: usize = 512;

/// An archive that is being written.
#[derive(Debug, Default)]
pub struct Archive(Vec<u8>);

impl Archive {
    pub fn directory(&mut self, path: &str) -> Result<()> {
        self.entry(&format!("{path}/"), (b'5', ""), 0, 0o755)
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.entry(path, (b'2', target), 0, 0o777)
    }

    pub fn file(&mut self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        self.entry(path, (b'0', ""), content.len(), mode)?;
        self.0.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    /// Two empty blocks are the end.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }

    fn entry(&mut self, path: &str, (kind, target): (u8, &str), size: usize, mode: u32) -> Result<()> {
        let (prefix, name) = split(path)?;
        if target.len() > 100 {
            bail!("{path}: its target {target} is longer than the 100 bytes of a ustar link");
        }
        let mut header = [0; BLOCK];
        let mut put = |at: usize, field: &[u8]| {
            let room = header.get_mut(at..at + field.len()).context("a ustar header has 512 bytes")?;
            room.copy_from_slice(field);
            anyhow::Ok(())
        };
        put(0, name.as_bytes())?;
        put(100, format!("{mode:07o}").as_bytes())?;
        put(108, b"0000000")?;
        put(116, b"0000000")?;
        put(124, format!("{size:011o}").as_bytes())?;
        put(136, b"00000000000")?;
        // The checksum is made with blanks in its own place.
        put(148, b"        ")?;
        put(156, &[kind])?;
        put(157, target.as_bytes())?;
        put(257, b"ustar\x0000")?;
        put(345, prefix.as_bytes())?;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        Ok(())
    }
}

/// A name has 100 bytes; 155 more lie in front of a slash.
fn split(path: &str) -> Result<(&str, &str)> {
    if path.len() <= 100 {
        return Ok(("", path));
    }
    let mut halves = path.match_indices('/').map(|(at, _)| (&path[..at], &path[at + 1..]));
    halves.rfind(|(prefix, name)| prefix.len() <= 155 && (1..=100).contains(&name.len())).with_context(|| {
        format!("{path}: longer than the names of a ustar archive, which have 155 and 100 bytes")
    })
}

/// The content of one file.
pub fn find<'a>(archive: &'a [u8], path: &str) -> Option<&'a [u8]> {
    files(archive).find(|(name, _)| name == path).map(|(_, content)| content)
}

/// What is in it, by name, as far as it is one.
pub fn files(archive: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    let mut rest = archive;
    std::iter::from_fn(move || {
        let (header, after) = rest.split_at_checked(BLOCK)?;
        let name = header.split(|byte| *byte == 0).next().filter(|name| !name.is_empty())?;
        let digits = std::str::from_utf8(header.get(124..135)?).ok()?;
        let size = usize::from_str_radix(digits.trim_matches([' ', '\0']), 8).ok()?;
        let prefix = header.get(345..500)?.split(|byte| *byte == 0).next()?;
        let whole = if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') };
        let content = after.get(..size)?;
        rest = after.get(size.checked_next_multiple_of(BLOCK)?..).unwrap_or_default();
        Some((String::from_utf8_lossy(&whole).into_owned(), content))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_again() {
        let mut archive = Archive::default();
        archive.directory("bin").unwrap();
        archive.file("bin/a", &[1; 513], 0o755).unwrap();
        archive.file("b", b"text", 0o644).unwrap();
        let bytes = archive.finish();
        assert_eq!(find(&bytes, "bin/a"), Some(&[1; 513][..]));
        assert_eq!(find(&bytes, "b"), Some(&b"text"[..]));
        assert_eq!(find(&bytes, "c"), None);
        assert_eq!(find(&bytes[..600], "b"), None);
    }

    #[test]
    fn a_long_path_is_split_at_a_slash() {
        let long = format!("nodes/{}/kernel/conntrack-max.txt", "n".repeat(90));
        let mut archive = Archive::default();
        archive.file(&long, b"text", 0o644).unwrap();
        let refused = archive.file(&"n".repeat(101), b"", 0o644).unwrap_err().to_string();
        assert!(refused.contains("155 and 100 bytes"), "{refused}");
        assert_eq!(find(&archive.finish(), &long), Some(&b"text"[..]));
    }

    #[test]
    fn tar_itself_reads_it() {
        let mut archive = Archive::default();
        archive.directory("bin").unwrap();
        archive.file("bin/a", b"text", 0o755).unwrap();
        let long = format!("{}/{}", "d".repeat(80), "f".repeat(80));
        archive.file(&long, b"text", 0o644).unwrap();
        let path = std::env::temp_dir().join(format!("plumb-tar-{}", std::process::id()));
        std::fs::write(&path, archive.finish()).unwrap();
        let listed = std::process::Command::new("tar").arg("tvf").arg(&path).output();
        std::fs::remove_file(&path).unwrap();
        let text = String::from_utf8(listed.unwrap().stdout).unwrap();
        assert!(
            text.contains("drwxr-xr-x")
                && text.contains("-rwxr-xr-x")
                && text.contains("bin/a")
                && text.contains(&long),
            "{text}"
        );
    }
}
