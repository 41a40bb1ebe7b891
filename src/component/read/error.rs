//! What is wrong with a value, and what is known after some rounds of reading.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;

use serde::de::{self, Expected, Unexpected};

use crate::component::Problem;

/// What is known after some rounds.
#[derive(Default)]
pub(super) struct State {
    pub(super) problems: RefCell<Vec<Problem>>,
    /// What is not read again, since its mistake was reported.
    faults: RefCell<HashSet<Fault>>,
    /// Unknown keys that were reported, by address, and the field that each was probably meant to be.
    pub(super) unknown: RefCell<HashSet<(usize, Option<String>)>>,
    /// How often a stand-in was used in this round.
    pub(super) used: Cell<usize>,
}

/// What is wrong. Nodes and keys are known by their address: the tree does not move while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    /// A value: a stand-in takes its place.
    Value(usize),
    /// An entry of a map: it is left out.
    Entry(usize),
    /// A field that is not there: a stand-in takes its place.
    Missing(usize, &'static str),
}

impl State {
    pub(super) fn has(&self, fault: Fault) -> bool {
        self.faults.borrow().contains(&fault)
    }

    pub(super) fn count_stand_in(&self) {
        self.used.set(self.used.get() + 1);
    }

    /// Remembers a mistake. False if another round would meet the same one.
    pub(super) fn absorb(&self, error: Error) -> bool {
        let Inner::Placed { fault, problem } = *error.0 else { return false };
        self.problems.borrow_mut().extend(problem);
        self.faults.borrow_mut().insert(fault)
    }
}

pub(super) fn address<T>(of: &T) -> usize {
    std::ptr::from_ref(of) as usize
}

#[derive(Debug)]
pub(super) struct Error(pub(super) Box<Inner>);

#[derive(Debug)]
pub(super) enum Inner {
    /// Raised by a visitor. The value around it is at fault.
    Raised(Raised),
    /// It is known what is at fault. Without a problem if it was reported before, or follows from one that was.
    Placed { fault: Fault, problem: Option<Problem> },
    /// A stand-in was refused. Whatever is around it must be replaced.
    StandInRefused,
}

#[derive(Debug)]
pub(super) enum Raised {
    /// Something else was expected.
    Expected(String),
    /// A field is missing.
    Missing(&'static str),
    /// A key is unknown.
    UnknownField(String, &'static [&'static str]),
    /// A word is none of these.
    UnknownVariant(String, &'static [&'static str]),
    /// A type's own words.
    Words(String),
}

impl Error {
    pub(super) fn raised(raised: Raised) -> Self {
        Self(Box::new(Inner::Raised(raised)))
    }

    pub(super) fn expected(what: impl Into<String>) -> Self {
        Self::raised(Raised::Expected(what.into()))
    }

    pub(super) fn placed(fault: Fault, problem: Option<Problem>) -> Self {
        Self(Box::new(Inner::Placed { fault, problem }))
    }

    pub(super) fn stand_in_refused() -> Self {
        Self(Box::new(Inner::StandInRefused))
    }

    pub(super) fn is_stand_in_refused(&self) -> bool {
        matches!(*self.0, Inner::StandInRefused)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mistake in a config")
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(words: T) -> Self {
        Self::raised(Raised::Words(words.to_string()))
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::expected(expected.to_string())
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::expected(expected.to_string())
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::raised(Raised::UnknownVariant(variant.to_owned(), expected))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::raised(Raised::UnknownField(field.to_owned(), expected))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::raised(Raised::Missing(field))
    }
}
