//! What a file is whose contents are not those that its name promises.

use std::fs;
use std::path::Path;

use crate::files;

/// Bytes of a file that are looked at.
const LOOKED_AT: usize = 512;
/// A file shorter than this that is text is shown, as servers' short answers are.
const SHORT: usize = 200;

/// A kind of file: what it begins with, what it is, and what to do.
struct Kind {
    begins: &'static [&'static [u8]],
    what: &'static str,
}

const KINDS: [Kind; 9] = [
    Kind {
        begins: &[b"version https://git-lfs.github.com/spec/"],
        what: "a Git LFS pointer in place of the file: run `git lfs pull` in its folder",
    },
    Kind {
        begins: &[b"<!doctype", b"<html", b"<?xml", b"<head"],
        what: "a web page in place of the file: what was saved is the page about it, or one that asks for a login; \
               download it with `hf download`",
    },
    Kind {
        begins: &[b"GGUF"],
        what: "a GGUF file: its name must end in .gguf",
    },
    Kind {
        begins: &[b"ggjt", b"tjgg", b"ggml", b"lmgg", b"fmgg", b"ggmf"],
        what: "a file of ggml's formats before GGUF: convert the model again with llama.cpp",
    },
    Kind {
        begins: &[b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"],
        what: "a Python pickle or an archive (torch.save writes both): it can run code when it is read and is never loaded; \
               save the model again with transformers' save_pretrained",
    },
    Kind {
        begins: &[b"\x89HDF"],
        what: "an HDF5 file (Keras, TensorFlow): load it with transformers (from_tf=True) and save it with save_pretrained",
    },
    Kind {
        begins: &[b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ"],
        what: "a compressed file: unpack it first",
    },
    Kind {
        begins: &[b"\x08\x03\x12", b"\x08\x04\x12", b"\x08\x05\x12", b"\x08\x06\x12", b"\x08\x07\x12", b"\x08\x08\x12", b"\x08\x09\x12", b"\x08\x0a\x12"],
        what: "an ONNX graph, which is not read",
    },
    Kind {
        begins: &[b"\x93NUMPY"],
        what: "a NumPy array, which is not read",
    },
];

/// What `bytes`, the contents of a file or its beginning, are instead of what was expected, if that can be told.
pub fn foreign(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(LOOKED_AT)];
    let text = head.trim_ascii_start();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let begins = |with: &&[u8]| {
        let same = |part: Option<&[u8]>| part.is_some_and(|part| part.eq_ignore_ascii_case(with));
        head.starts_with(with) || (with.is_ascii() && same(text.get(..with.len())))
    };
    let kind = KINDS.iter().find(|kind| kind.begins.iter().any(begins));
    if let Some(kind) = kind {
        return Some(kind.what.to_string());
    }
    if bytes.len() >= SHORT {
        return None;
    }
    let said = std::str::from_utf8(bytes).ok()?.trim();
    let printable = said.chars().all(|c| !c.is_control()) && said.chars().any(char::is_alphabetic);
    // A number or a list that was cut short is no server's answer.
    let sentence = said.starts_with(|c: char| c.is_alphabetic()) && said.contains(' ');
    (printable && sentence).then(|| format!("a text in place of the file: {said:?}"))
}

/// What a text file is in place of its own text; such texts would be taken for what the file says.
pub fn foreign_text(text: &str) -> Option<&'static str> {
    let start = text.trim_start_matches('\u{feff}').trim_start().as_bytes();
    let is = |kind: &&Kind| {
        let same = |with: &&[u8]| {
            let part = start.get(..with.len());
            part.is_some_and(|part| part.eq_ignore_ascii_case(with))
        };
        kind.begins.iter().any(same)
    };
    let found = KINDS[..2].iter().find(is)?;
    // A template may well begin with a tag.
    let whole_page = text.to_ascii_lowercase().contains("</html>");
    (start.starts_with(b"version ") || whole_page).then_some(found.what)
}

/// What lies in the place of `file`: a link to nothing, or something that is no file.
pub fn obstacle(file: &Path) -> Option<String> {
    if fs::metadata(file).is_ok() {
        return files::check(file).err().map(|error| error.to_string());
    }
    let target = fs::read_link(file).ok()?;
    Some(format!(
        "a link to {}, which is not there: in a hub's cache that is a download that was not finished, or a folder that was \
         copied without its blobs (copy with `cp -rL`)",
        target.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_their_first_bytes() {
        for (bytes, word) in [
            (
                &b"version https://git-lfs.github.com/spec/v1\noid sha256:0"[..],
                "git lfs pull",
            ),
            (b"<!DOCTYPE html>\n<html>", "web page"),
            (b"\n  <HTML lang=en>", "web page"),
            (b"\xef\xbb\xbf<html>", "web page"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"PK\x03\x04\0\0", "pickle"),
            (b"\x80\x02}q\x00", "pickle"),
            (b"Entry not found", "\"Entry not found\""),
        ] {
            let told = foreign(bytes).unwrap_or_default();
            assert!(told.contains(word), "{word:?} is not in {told:?}");
        }
        for bytes in [
            &b""[..],
            b"{\"a\": 1}",
            b"[1, 2",
            b"\0\0\0\0",
            b"{\n  \"model_type\": \"ll",
        ] {
            assert_eq!(foreign(bytes), None);
        }
    }

    #[test]
    fn a_template_that_begins_with_a_tag_is_no_web_page() {
        assert_eq!(foreign_text("<html>{{ messages }}"), None);
        assert!(foreign_text("<!doctype html><html></html>").is_some());
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n";
        assert!(foreign_text(pointer).is_some());
    }
}
