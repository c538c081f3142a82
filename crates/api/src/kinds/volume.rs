//! A **volume**: a disk that lives on one worker and is attached to at most one VM. Today every volume is the root
//! disk of a VM made directly: owned by it, cloned from its image, kept through stop, start, crash and reboot.

use serde::{Deserialize, Serialize};

use super::{Field, SpecRules};
use crate::name::Name;
use crate::object::ObjectRef;
use crate::reader::Reader;
use crate::uid::WorkerId;
use crate::units::ByteSize;

/// The largest volume.
pub const SIZE_MAX: ByteSize = ByteSize::from_bytes(64 << 40);

/// What is asked of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The image that it is cloned from.
    pub image: Name,
    /// The version of the image; fixed for the life of the volume.
    pub image_version: String,
    /// Its size; at least that of the image's root file system.
    pub size: ByteSize,
}

/// Where the volume lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    /// The worker that holds it, once one was chosen. It never changes by itself.
    pub worker: Option<WorkerId>,
}

impl SpecRules for Spec {
    const ABOUT: &'static str = "a disk on one worker, attached to at most one VM";

    const FIELDS: &'static [Field] = &[
    ("image", "the image that it is cloned from"),
    ("image_version", "the version of the image; fixed for life"),
    ("size", "its size, at most 64TiB"),
];

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        let image = fields.required("image");
        let image_version = fields.required("image_version");
        let size: Option<ByteSize> = fields.required("size");
        if size.is_some_and(|size| size == ByteSize::default() || size > SIZE_MAX) {
            fields.problem("size", format!("must be more than 0 and at most {SIZE_MAX}"), None);
        }
        Some(Spec { image: image?, image_version: image_version?, size: size? })
    }

    fn references(&self) -> Vec<ObjectRef> {
        vec![ObjectRef::new(super::Kind::Image, self.image.clone())]
    }

    fn frozen_field(&self, next: &Spec) -> Option<(&'static str, &'static str)> {
        (self != next).then_some(("spec", "a volume is changed through the VM that owns it"))
    }
}
