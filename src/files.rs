//! Files that somebody names or that lie where a file is looked for. Opening a named pipe waits for whoever writes to it, and reading
//! a device may never end: what is no regular file is refused by what it is.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use memmap2::Mmap;

/// Fails if `path` is not there or is no regular file; links count as what they lead to.
pub fn check(path: &Path) -> io::Result<()> {
    let kind = fs::metadata(path)?.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(io::Error::other(format!("{what}, expected a file")))
}

pub fn open(path: &Path) -> io::Result<File> {
    check(path)?;
    File::open(path)
}

/// The file mapped into memory for reading. It must not be changed while it is.
pub fn map(path: &Path) -> io::Result<Mmap> {
    let file = open(path)?;
    // SAFETY: nothing here writes to it, and that nobody else does is asked of the caller.
    unsafe { Mmap::map(&file) }
}

pub fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    check(path)?;
    fs::read(path)
}

pub fn text(path: &Path) -> io::Result<String> {
    check(path)?;
    fs::read_to_string(path)
}
