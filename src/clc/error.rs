//! What is wrong with a message or with the order of messages.

use std::{error, fmt};

use super::Diagnosis;

/// A message that breaks the protocol, or a step out of order: what, where, what was expected and
/// what was found.
///
/// Linux drops a connection over most of these. Here the caller may stay on TCP, and tell the peer
/// so with a Decline that carries [`ClcError::diagnosis`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClcError(Box<Fault>);

/// Boxed, so that results stay small: errors are rare.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    subject: &'static str,
    field: &'static str,
    offset: Option<usize>,
    expected: Box<str>,
    found: Box<str>,
    diagnosis: Diagnosis,
}

impl ClcError {
    /// `offset` is the byte of the message at which the field begins, if the fault lies in one.
    pub(super) fn new(
        subject: &'static str,
        field: &'static str,
        offset: Option<usize>,
        expected: impl Into<Box<str>>,
        found: impl Into<Box<str>>,
        diagnosis: Diagnosis,
    ) -> Self {
        let (expected, found) = (expected.into(), found.into());
        Self(Box::new(Fault { subject, field, offset, expected, found, diagnosis }))
    }

    /// The message, or other thing, that is wrong: "Proposal", "header", "handshake", ...
    pub fn subject(&self) -> &'static str {
        self.0.subject
    }

    /// The field at fault.
    pub fn field(&self) -> &'static str {
        self.0.field
    }

    /// Where in the message the field begins, in bytes.
    pub fn offset(&self) -> Option<usize> {
        self.0.offset
    }

    /// The diagnosis that tells the peer about it in a Decline.
    pub fn diagnosis(&self) -> Diagnosis {
        self.0.diagnosis
    }
}

impl fmt::Display for ClcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CLC {}: {}", self.0.subject, self.0.field)?;
        if let Some(offset) = self.0.offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, ": expected {}, found {}", self.0.expected, self.0.found)
    }
}

impl error::Error for ClcError {}
