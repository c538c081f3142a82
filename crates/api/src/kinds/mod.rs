//! The kinds of objects. **Adding one begins here**: a type file beside this one, and one line in [`for_each_kind`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object::ObjectRef;
use crate::reader::Reader;

/// Hands the list of all kinds to the macro `$callback`, so that there is one list. A line is the kind's type, its
/// module (also the word that people use) and its short name.
#[macro_export]
macro_rules! for_each_kind {
    ($callback:ident) => {
        $callback! {
            Worker worker "node";
            Image image "img";
            Network network "net";
            Volume volume "vol";
            Snapshot snapshot "snap";
            Vm vm "machine";
            ScaleGroup scalegroup "group";
            LoadBalancer loadbalancer "lb";
            DnsRecord dnsrecord "dns";
            Secret secret "cert";
        }
    };
}

/// A field of a specification and what it means. Fields of list items stand under `[]`.
pub type Field = (&'static str, &'static str);

/// What a kind's specification must be able to do. The rules are pure and see one object only; whether a referenced
/// object exists is a waiting reason, found by a planner.
pub trait SpecRules: Sized {
    /// What the kind is for, in one sentence, for `lightbyte explain`.
    const ABOUT: &'static str;

    /// Its fields, for `lightbyte explain`.
    const FIELDS: &'static [Field];

    /// The shortest specification that is complete: what is added to it when it is read are the defaults. `None` for a
    /// kind that nobody writes by hand.
    fn shortest() -> Option<Value> {
        None
    }

    /// Reads what a person wrote, and notes every problem. `None` when a problem leaves no specification.
    fn read(fields: &mut Reader<'_>) -> Option<Self>;

    /// The objects that this one names. Their changes wake its planner.
    fn references(&self) -> Vec<ObjectRef> {
        Vec::new()
    }

    /// The first field that may not be changed from `self` to `next`, with the reason.
    fn frozen_field(&self, _next: &Self) -> Option<(&'static str, &'static str)> {
        None
    }
}

macro_rules! define_kinds {
    ($($Kind:ident $module:ident $short:literal;)*) => {
        $(
            pub mod $module;
            #[doc = concat!("Marks identities of the kind `", stringify!($module), "`.")]
            pub enum $Kind {}
        )*

        /// A kind of object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum Kind {
            $(#[doc = concat!("See [`", stringify!($module), "`].")] $Kind,)*
        }

        impl Kind {
            /// Every kind, in the order in which their objects are planned and listed.
            pub const ALL: &'static [Kind] = &[$(Kind::$Kind,)*];

            /// The word that people use.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Kind::$Kind => stringify!($module),)* }
            }

            /// The word that people in a hurry use.
            #[must_use]
            pub const fn short(self) -> &'static str {
                match self { $(Kind::$Kind => $short,)* }
            }

            /// What the kind is for, in one sentence.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self { $(Kind::$Kind => <$module::Spec as SpecRules>::ABOUT,)* }
            }

            /// See [`SpecRules::FIELDS`].
            #[must_use]
            pub const fn fields(self) -> &'static [Field] {
                match self { $(Kind::$Kind => <$module::Spec as SpecRules>::FIELDS,)* }
            }

            /// See [`SpecRules::shortest`].
            #[must_use]
            pub fn shortest(self) -> Option<Value> {
                match self { $(Kind::$Kind => <$module::Spec as SpecRules>::shortest(),)* }
            }
        }

        /// What is asked of an object, by kind. Stored under the kind's word.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum Spec {
            $(#[doc = concat!("Of a ", stringify!($module), ".")] $Kind($module::Spec),)*
        }

        impl Spec {
            /// The kind whose specification this is.
            #[must_use]
            pub const fn kind(&self) -> Kind {
                match self { $(Spec::$Kind(_) => Kind::$Kind,)* }
            }

            /// Reads what a person wrote for `kind`, and notes every problem.
            pub fn read(kind: Kind, fields: &mut Reader<'_>) -> Option<Spec> {
                match kind { $(Kind::$Kind => $module::Spec::read(fields).map(Spec::$Kind),)* }
            }

            /// The specification as people see it.
            ///
            /// # Errors
            /// Never in practice: every specification is made of plain data.
            pub fn to_json(&self) -> Result<Value, serde_json::Error> {
                match self { $(Spec::$Kind(spec) => serde_json::to_value(spec),)* }
            }

            /// See [`SpecRules::references`].
            #[must_use]
            pub fn references(&self) -> Vec<ObjectRef> {
                match self { $(Spec::$Kind(spec) => spec.references(),)* }
            }

            /// See [`SpecRules::frozen_field`]. Two different kinds have nothing in common that could change.
            #[must_use]
            pub fn frozen_field(&self, next: &Spec) -> Option<(&'static str, &'static str)> {
                match (self, next) {
                    $((Spec::$Kind(before), Spec::$Kind(after)) => before.frozen_field(after),)*
                    _ => Some(("kind", "an object keeps its kind")),
                }
            }
        }

        /// What a controller chose for an object, by kind. Stored under the kind's word.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum Choice {
            $(#[doc = concat!("For a ", stringify!($module), ".")] $Kind($module::Choice),)*
        }

        impl Choice {
            /// What stands there before anything was chosen.
            #[must_use]
            pub fn none(kind: Kind) -> Choice {
                match kind { $(Kind::$Kind => Choice::$Kind($module::Choice::default()),)* }
            }
        }
    };
}
for_each_kind!(define_kinds);

impl Choice {
    /// The objects that the choice holds, whether the specification still names them or not. Its changes wake them.
    #[must_use]
    pub fn holds(&self) -> Vec<ObjectRef> {
        match self {
            Choice::Vm(vm::Choice { placement: Some(placement), .. }) => {
                let volume = |disk: &vm::PlacedDisk| ObjectRef::new(Kind::Volume, disk.volume_name.clone());
                placement.disks.iter().map(volume).collect()
            }
            Choice::LoadBalancer(choice) => {
                choice.shown().map(|shown| ObjectRef::new(Kind::Secret, shown.secret.clone())).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// A word that is no kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is not a kind of object")]
pub struct KindError {
    /// The word.
    pub word: String,
}

impl FromStr for Kind {
    type Err = KindError;
    /// Takes the word, the short name, and the plurals of both.
    fn from_str(text: &str) -> Result<Kind, KindError> {
        let singular = text.strip_suffix('s').unwrap_or(text);
        let means =
            |kind: &&Kind| [kind.word(), kind.short()].iter().any(|word| *word == text || *word == singular);
        Kind::ALL.iter().find(means).copied().ok_or_else(|| KindError { word: text.to_owned() })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.word())
    }
}
