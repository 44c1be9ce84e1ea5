//! What is echoed of texts from outside, in errors and in the log: enough to know them by, however long they are.

use std::path::Path;

/// Characters of a text that are shown.
const SHOWN: usize = 80;

/// A text, if it is short, else its beginning and how long it is.
///
/// ```
/// # use inf_mllm::excerpt::excerpt;
/// assert_eq!(excerpt("left"), "left");
/// let long = "a".repeat(100_000);
/// assert!(excerpt(&long).ends_with("aaa... (100000 bytes)"));
/// assert!(excerpt(&long).len() < 120);
/// ```
pub fn excerpt(text: &str) -> String {
    excerpt_of(text, SHOWN)
}

/// The same of a path: those of real files are shown whole.
///
/// ```
/// # use std::path::Path;
/// # use inf_mllm::excerpt::excerpt_of_path;
/// let real = format!("/opt/{}/model.gguf", "folder/".repeat(20));
/// assert_eq!(excerpt_of_path(Path::new(&real)), real);
/// assert!(excerpt_of_path(Path::new(&"a/".repeat(2500))).ends_with("... (5000 bytes)"));
/// ```
pub fn excerpt_of_path(path: &Path) -> String {
    const PATH: usize = 255;
    excerpt_of(&path.to_string_lossy(), PATH)
}

/// The same of what a library says, which may echo as long a text in the middle of it.
pub fn excerpt_of_message(text: &str) -> String {
    const MESSAGE: usize = 600;
    excerpt_of(text, MESSAGE)
}

fn excerpt_of(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_string(),
    }
}
