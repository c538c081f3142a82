//! What people and machines say to lightbyte: kinds with their specs, names, units, validation, and the stored form.
//!
//! This crate holds data and nothing that acts: serde types, the rules that make a manifest good or bad, and the
//! layout of keys. Every other crate may depend on it; it depends on none of ours.
//!
//! Two readers of the same types exist on purpose. A **manifest** is read by [`reader::Reader`], which refuses
//! unknown fields and reports every problem at once with its path. A **stored value** is read by serde, which
//! accepts what it does not know (see [`envelope`]), because an older server must live beside a newer one.

pub mod actor;
pub mod address;
pub mod assigned;
pub mod decided;
pub mod envelope;
pub mod event;
pub mod explain;
pub mod firewall;
pub mod first_boot;
pub mod health;
pub mod key;
pub mod kinds;
pub mod manifest;
pub mod name;
pub mod object;
pub mod observed;
pub mod parts;
pub mod placing;
pub mod reader;
pub mod records;
pub mod text;
pub mod topology;
pub mod uid;
pub mod units;
pub mod waiting;
pub mod wire;
pub mod zone;

pub use actor::{Actor, Who, Writer};
pub use address::{MacAddress, Subnet};
pub use assigned::{Assigned, AssignedVm, AssignedVolume};
pub use decided::{Decided, Decision};
pub use event::Event;
pub use key::Key;
pub use kinds::{Choice, Kind, Spec};
pub use manifest::Manifest;
pub use name::Name;
pub use object::{Asked, Meta, ObjectRef};
pub use observed::{Observed, ObservedVm, ObservedVolume, ObservedWorker};
pub use uid::{Id, Uid, VmId, VolumeId, WorkerId};
pub use units::{ByteSize, Span};
pub use waiting::WaitingOn;

/// The instant type used in every stored value, in UTC and with milliseconds. Nothing in this crate reads a clock.
pub use jiff::Timestamp;
