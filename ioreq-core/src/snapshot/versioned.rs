// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A state in any serde format, with its name and version before it.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, DeserializeSeed, SeqAccess, Unexpected, Visitor};
use serde::ser::SerializeTuple as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::SavedState;

/// Name, version, state: in every format in this order, so that nothing of a state is read that this program does not know.
///
/// ```
/// use ioreq_core::snapshot::{SavedState, Versioned};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Scratch {
///     value: u8,
/// }
///
/// impl SavedState for Scratch {
///     const KIND: &'static str = "scratch register";
///     const VERSION: u32 = 1;
/// }
///
/// let text = serde_json::to_string(&Versioned(Scratch { value: 7 }))?;
/// assert_eq!(text, r#"["scratch register",1,{"value":7}]"#);
/// let Versioned(back) = serde_json::from_str::<Versioned<Scratch>>(&text)?;
/// assert_eq!(back.value, 7);
///
/// let newer = r#"["scratch register",2,{"mode":"turbo"}]"#;
/// let err = serde_json::from_str::<Versioned<Scratch>>(newer).err().unwrap();
/// assert!(err.to_string().starts_with("the state of a scratch register of version 2: this program knows version 1"));
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// To read an older version, ask for that: a type of its own with the same [`KIND`](SavedState::KIND) and the older version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versioned<S>(
    /// The state.
    pub S,
);

/// Elements: name, version, state.
const PARTS: usize = 3;

impl<S: SavedState + Serialize> Serialize for Versioned<S> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        let mut parts = serializer.serialize_tuple(PARTS)?;
        parts.serialize_element(S::KIND)?;
        parts.serialize_element(&S::VERSION)?;
        parts.serialize_element(&self.0)?;
        parts.end()
    }
}

impl<'de, S: SavedState + Deserialize<'de>> Deserialize<'de> for Versioned<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_tuple(PARTS, Parts(PhantomData))
    }
}

struct Parts<S>(PhantomData<S>);

impl<'de, S: SavedState + Deserialize<'de>> Visitor<'de> for Parts<S> {
    type Value = Versioned<S>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the state of a {}, with its name and version", S::KIND)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
        let short = |len| de::Error::invalid_length(len, &self);
        parts
            .next_element_seed(Name(S::KIND))?
            .ok_or_else(|| short(0))?;
        let version: u32 = parts.next_element()?.ok_or_else(|| short(1))?;
        if version != S::VERSION {
            return Err(de::Error::custom(format_args!(
                "the state of a {} of version {version}: this program knows version {}",
                S::KIND,
                S::VERSION
            )));
        }
        let state = parts.next_element()?.ok_or_else(|| short(2))?;
        Ok(Versioned(state))
    }
}

/// The name that is expected; what is there instead is neither kept nor copied.
struct Name(&'static str);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the state of a {}", self.0)
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<(), E> {
        if name == self.0 {
            return Ok(());
        }
        let short: String = name.chars().take(64).collect();
        Err(de::Error::invalid_value(Unexpected::Str(&short), &self))
    }
}
