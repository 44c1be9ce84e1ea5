//! Errors of the tensor library, told without the backtraces that it writes into their text.

use std::fmt::{self, Display, Formatter};

use super::device_memory::out_of_memory;

/// An error of the tensor library. Where `RUST_BACKTRACE` is set the library's own text ends in a backtrace, which is nothing for
/// somebody who uses the node; this text does not.
#[derive(Debug)]
pub struct TensorError(candle_core::Error);

impl TensorError {
    /// The text of `error` without backtraces.
    pub fn describe(error: &candle_core::Error) -> String {
        use candle_core::Error;
        match error {
            error if out_of_memory(error) => "the GPU is out of memory".to_string(),
            Error::WithBacktrace { inner, .. } => Self::describe(inner),
            Error::Context { inner, context } => format!("{context}: {}", Self::describe(inner)),
            Error::WrappedContext { wrapped, context } => format!("{context}: {wrapped}"),
            Error::WithPath { inner, path } => {
                format!("{}: {}", path.display(), Self::describe(inner))
            }
            other => other.to_string(),
        }
    }
}

impl Display for TensorError {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(&Self::describe(&self.0))
    }
}

// Without a source: a chain of errors would tell the library's text once more, backtrace and all.
impl std::error::Error for TensorError {}

impl From<candle_core::Error> for TensorError {
    fn from(error: candle_core::Error) -> Self {
        Self(error)
    }
}

#[cfg(test)]
mod tests {
    use std::backtrace::Backtrace;

    use candle_core::Error;

    use super::TensorError;

    #[test]
    fn a_backtrace_is_left_out_however_deep_it_lies() {
        let traced = |inner: Error| Error::WithBacktrace {
            inner: Box::new(inner),
            backtrace: Box::new(Backtrace::force_capture()),
        };
        let error = traced(Error::Msg("what was wrong".to_string()));
        assert!(error.to_string().contains("tensor_error"), "{error}");
        let error = traced(error.with_path("a.file").context("reading"));
        assert_eq!(
            TensorError::from(error).to_string(),
            "reading: a.file: what was wrong"
        );
    }
}
