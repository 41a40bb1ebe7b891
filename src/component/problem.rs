//! A mistake in a pipeline file, as a component reports it: a place, what was found, what to do.

use std::ops::Range;

/// A range of bytes in a pipeline file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// As indices.
    #[must_use]
    pub fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file cannot run.
    Error,
    /// The file runs, and somebody should know.
    Warning,
}

/// A mistake, placed. `config::diagnostic` renders it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What was found and what was expected: lowercase, no final stop, the user's words in backticks.
    pub message: String,
    /// Where.
    pub span: Span,
    /// What stands under the underline; empty for none.
    pub label: String,
    /// The next steps.
    pub help: Vec<String>,
}

impl Problem {
    /// An error at a place.
    #[must_use]
    pub fn error(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, message: message.into(), span, label: String::new(), help: Vec::new() }
    }

    /// A warning at a place.
    #[must_use]
    pub fn warning(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, message) }
    }

    /// Says what the underlined text is.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Adds a next step.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// Adds a next step if there is one.
    #[must_use]
    pub fn help_if<T>(self, value: Option<T>, help: impl FnOnce(T) -> String) -> Self {
        match value {
            Some(value) => self.help(help(value)),
            None => self,
        }
    }
}
