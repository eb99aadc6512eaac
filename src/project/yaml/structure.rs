//! The first pass over a document: depth, expansion of aliases, keys, tags.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, EnumAccess, Error as _, MapAccess, SeqAccess, Visitor};

use super::with_hint;
use crate::sys::escape::visible_bounded;

/// The deepest nesting of lists and mappings.
pub const MAX_DEPTH: usize = 64;
/// The most that opening brackets times bytes of a file may be.
///
/// The parser's time grows with tokens times depth (a mebibyte of `[` takes it many minutes), and how deep brackets
/// really are only the parser knows; their number is the bound that no comment and no quote can hide.
pub const MAX_WORK: usize = 2_000_000_000;
/// The most values in a file, aliases expanded.
pub const MAX_VALUES: usize = 200_000;
/// The most bytes in the values of a file, aliases expanded.
pub const MAX_EXPANDED: usize = 4 << 20;

/// Looks at the structure of a document and keeps nothing of it.
///
/// # Errors
/// If it is nested too deeply, too large once its aliases are expanded, or has a tag, a merge key, a key that is no
/// text or the same key twice.
pub fn check<'de, D: serde::Deserializer<'de>>(document: D) -> Result<(), D::Error> {
    let budget = Budget { values: Cell::new(MAX_VALUES), bytes: Cell::new(MAX_EXPANDED) };
    Node { budget: &budget, depth: 0 }.deserialize(document)
}

/// What may still be expanded; shared by all nodes of a document.
struct Budget {
    values: Cell<usize>,
    bytes: Cell<usize>,
}

impl Budget {
    fn spend<E: serde::de::Error>(&self, bytes: usize) -> Result<(), E> {
        match (self.values.get().checked_sub(1), self.bytes.get().checked_sub(bytes)) {
            (Some(values), Some(bytes)) => {
                self.values.set(values);
                self.bytes.set(bytes);
                Ok(())
            }
            _ => Err(E::custom("the file has too many values (aliases expanded)")),
        }
    }
}

/// Looks at one value of the structure.
#[derive(Clone, Copy)]
struct Node<'a> {
    budget: &'a Budget,
    depth: usize,
}

impl Node<'_> {
    fn inner<E: serde::de::Error>(&self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format!("lists and mappings are nested deeper than {MAX_DEPTH}")));
        }
        Ok(Self { budget: self.budget, depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! spend {
    ($($visit:ident: $type:ty),*) => {$(
        fn $visit<E: serde::de::Error>(self, _: $type) -> Result<(), E> {
            self.budget.spend(8)
        }
    )*};
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    spend!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128, visit_f64: f64);

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.budget.spend(8)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        self.budget.spend(8)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.budget.spend(text.len())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while items.next_element_seed(inner)?.is_some() {}
        self.budget.spend(8)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        let mut seen = HashSet::new();
        while entries.next_key_seed(Key { seen: &mut seen, budget: self.budget })?.is_some() {
            entries.next_value_seed(inner)?;
        }
        self.budget.spend(8)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom(with_hint("a YAML tag (`!…`) is not allowed", "put a text that begins with ! in quotes")))
    }
}

/// Looks at one key: text, not `<<`, not seen before in this mapping.
struct Key<'a> {
    seen: &'a mut HashSet<String>,
    budget: &'a Budget,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key that is a text (put it in quotes)")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.budget.spend::<E>(text.len())?;
        let shown = visible_bounded(text.as_bytes(), 80);
        if text == "<<" {
            return Err(E::custom(with_hint("the merge key `<<` is not allowed", "write the keys out")));
        }
        if !self.seen.insert(text.to_string()) {
            return Err(E::custom(format!("key `{shown}` stands here twice")));
        }
        Ok(())
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom(with_hint("a YAML tag (`!…`) is not allowed", "put a text that begins with ! in quotes")))
    }
}
