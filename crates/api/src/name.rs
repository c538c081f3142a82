//! Names that people give: DNS labels, checked once, cheap to clone.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest name: that of a DNS label (RFC 1035, 2.3.4). What people give is shorter, see
/// [`crate::manifest::GIVEN_NAME_LENGTH_MAX`].
pub const NAME_LENGTH_MAX: usize = 63;

/// The name of an object: a DNS label of at most [`NAME_LENGTH_MAX`] bytes, lower case, beginning with a letter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(Arc<str>);

/// Why a text is no [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a name may not be empty")]
    Empty,
    /// The text has more than [`NAME_LENGTH_MAX`] bytes.
    #[error("a name has at most {NAME_LENGTH_MAX} characters, this has {length}")]
    TooLong {
        /// How many bytes it has.
        length: usize,
    },
    /// A character that a DNS label may not have, or not there.
    #[error(
        "a name is made of a-z, 0-9 and -, begins with a letter and does not end with -; `{character}` at {position} is not"
    )]
    Character {
        /// The first character at fault.
        character: char,
        /// Its place, counted from 1.
        position: usize,
    },
}

impl Name {
    /// Checks `text` and makes it a name.
    ///
    /// # Errors
    /// [`NameError`] names the first fault.
    pub fn new(text: &str) -> Result<Name, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let last = text.chars().count() - 1;
        let bad = text.chars().enumerate().find(|&(index, character)| match character {
            'a'..='z' => false,
            '0'..='9' => index == 0,
            '-' => index == 0 || index == last,
            _ => true,
        });
        if let Some((index, character)) = bad {
            return Err(NameError::Character { character, position: index + 1 });
        }
        if text.len() > NAME_LENGTH_MAX {
            return Err(NameError::TooLong { length: text.len() });
        }
        Ok(Name(text.into()))
    }

    /// The name of a child: `<self>-<suffix>`.
    ///
    /// # Errors
    /// [`NameError`] when the owner's name leaves no room for the suffix.
    pub fn child(&self, suffix: &str) -> Result<Name, NameError> {
        Name::new(&format!("{self}-{suffix}"))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Name, NameError> {
        Name::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Name, NameError> {
        Name::new(&text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_short_dns_label() {
        let check = |text: &str, expect: Result<(), &str>| {
            let found = Name::new(text).map(|_| ()).map_err(|error| error.to_string());
            assert_eq!(found.as_ref().map_err(String::as_str).copied(), expect, "{text:?}");
        };
        let shape = "a name is made of a-z, 0-9 and -, begins with a letter and does not end with -";
        check("a", Ok(()));
        check("web-1", Ok(()));
        check("", Err("a name may not be empty"));
        check("1web", Err(&format!("{shape}; `1` at 1 is not")));
        check("-web", Err(&format!("{shape}; `-` at 1 is not")));
        check("web-", Err(&format!("{shape}; `-` at 4 is not")));
        check("Web", Err(&format!("{shape}; `W` at 1 is not")));
        check("we.b", Err(&format!("{shape}; `.` at 3 is not")));
        check("wé", Err(&format!("{shape}; `é` at 2 is not")));
        check(&"a".repeat(63), Ok(()));
        check(&"a".repeat(64), Err("a name has at most 63 characters, this has 64"));
    }
}
