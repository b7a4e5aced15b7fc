//! The archive format of an initramfs, "newc" (Documentation/driver-api/early-userspace/buffer-format.rst), written
//! uncompressed: it is read once, from memory.

use std::{collections::BTreeSet, path::Path};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHAR_DEVICE: u32 = 0o020_600;

/// An archive being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// A file at an absolute path, with every directory above it.
    pub fn file(&mut self, path: &str, data: &[u8]) {
        self.parents(path);
        self.entry(path, PROGRAM, (0, 0), data);
    }

    pub fn directory(&mut self, path: &str) {
        self.parents(path);
        self.make_directory(path);
    }

    /// A character device: the kernel opens /dev/console before init could create it.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path, CHAR_DEVICE, (major, minor), &[]);
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.entry("/TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        let parents: Vec<_> = Path::new(path).ancestors().skip(1).collect();
        for parent in
            parents.into_iter().rev().map(|parent| parent.to_string_lossy()).filter(|parent| parent != "/")
        {
            self.make_directory(&parent);
        }
    }

    fn make_directory(&mut self, path: &str) {
        if self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, (0, 0), &[]);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        let name = path.trim_start_matches('/');
        self.inode += 1;
        let size = u32::try_from(data.len()).expect("no file of an initramfs reaches 4 GiB");
        let name_size = name.len() as u32 + 1;
        // inode, mode, uid, gid, links, mtime, size, device, device of a node, length of the name, no checksum.
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and sizes as read by the format's rules.
    fn read(bytes: &[u8]) -> Vec<(String, u32)> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |nth: usize| {
                let from = at + 6 + nth * 8;
                u32::from_str_radix(std::str::from_utf8(&bytes[from..from + 8]).unwrap(), 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = &bytes[at + 110..at + 110 + name_size as usize - 1];
            found.push((String::from_utf8(name.to_vec()).unwrap(), size));
            at = (at + 110 + name_size as usize).next_multiple_of(4);
            at = (at + size as usize).next_multiple_of(4);
        }
        found
    }

    #[test]
    fn directories_come_once_and_before_their_files() {
        let mut archive = Archive::default();
        archive.file("/a/b/one", b"12345");
        archive.file("/a/two", b"");
        archive.device("/dev/console", 5, 1);
        let found = read(&archive.finish());
        let want = [
            ("a", 0),
            ("a/b", 0),
            ("a/b/one", 5),
            ("a/two", 0),
            ("dev", 0),
            ("dev/console", 0),
            ("TRAILER!!!", 0),
        ];
        assert_eq!(found, want.map(|(name, size)| (name.to_owned(), size)));
    }
}
