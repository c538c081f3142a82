//! An **image**: the versions of a root file system with its kernel, and a pointer to the one that new VMs get.

use serde::{Deserialize, Serialize};

use super::{Field, SpecRules};
use crate::reader::Reader;
use crate::units::ByteSize;

/// How many versions one image keeps.
pub const VERSIONS_MAX: usize = 32;
/// The longest kernel command line: what x86 kernels take (`COMMAND_LINE_SIZE`).
pub const COMMAND_LINE_BYTES_MAX: usize = 2_048;

/// What is asked of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// The version that new VMs get.
    pub current: String,
    /// All registered versions.
    pub versions: Vec<Version>,
}

/// One version: fully described by the checksums of its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its name; a hash of the parts or the deployer's own.
    pub version: String,
    /// Machine architecture as `uname -m` prints it.
    pub architecture: String,
    /// An uncompressed ELF kernel.
    pub kernel: Part,
    /// An initial RAM file system, if it needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Part>,
    /// What the kernel is started with, before the driver adds its own words.
    #[serde(default)]
    pub command_line: String,
    /// The root file system.
    pub root: Part,
}

/// A file of an image, by content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    /// SHA-256 (FIPS 180-4) of the content, in hexadecimal.
    pub sha256: String,
    /// Its length.
    pub size: ByteSize,
}

/// Nothing is chosen for an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {}

impl Spec {
    /// The version that new VMs get, if it is registered.
    #[must_use]
    pub fn current_version(&self) -> Option<&Version> {
        self.version(&self.current)
    }

    /// The version of that name.
    #[must_use]
    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.version == name)
    }
}

impl Version {
    /// Its parts.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        [&self.kernel, &self.root].into_iter().chain(&self.initrd)
    }
}

impl SpecRules for Spec {
    const ABOUT: &'static str = "the versions of a root file system with its kernel";

    const FIELDS: &'static [Field] = &[
        ("current", "the version that new VMs get; one of versions"),
        ("versions", "all registered versions, at most 32; `lightbyte import image` writes them"),
        ("versions[].version", "its name"),
        ("versions[].architecture", "as `uname -m` prints it"),
        ("versions[].kernel", "an uncompressed ELF kernel: {sha256, size}"),
        ("versions[].initrd", "an initial RAM file system, if it needs one: {sha256, size}"),
        ("versions[].command_line", "what the kernel is started with, at most 2048 bytes"),
        ("versions[].root", "the root file system: {sha256, size}"),
    ];

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        let versions = fields.list("versions", VERSIONS_MAX, read_version);
        let current: Option<String> = fields.required("current");
        let (versions, current) = (versions.unwrap_or_default(), current?);
        let spec = Spec { current, versions };
        if spec.current_version().is_none() {
            let known: Vec<&str> = spec.versions.iter().map(|version| version.version.as_str()).collect();
            let hint =
                format!("listed: {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") });
            fields.problem(
                "current",
                format!("version `{}` is not listed under versions", spec.current),
                Some(hint),
            );
        }
        Some(spec)
    }
}

fn read_version(fields: &mut Reader<'_>) -> Option<Version> {
    let version: Option<String> = fields.required("version");
    let architecture = fields.or("architecture", "x86_64".to_owned());
    let kernel = fields.object("kernel", read_part);
    let initrd = fields.object("initrd", read_part);
    let command_line = fields.or("command_line", String::new());
    let root = fields.object("root", read_part);
    if command_line.len() > COMMAND_LINE_BYTES_MAX || command_line.chars().any(char::is_control) {
        let rule = format!("must be one line of at most {COMMAND_LINE_BYTES_MAX} bytes");
        fields.problem("command_line", rule, None);
    }
    for (field, part) in [("kernel", &kernel), ("root", &root)] {
        if part.is_none() {
            fields.problem(field, "is missing or incomplete", Some("a part is {sha256, size}".to_owned()));
        }
    }
    Some(Version { version: version?, architecture, kernel: kernel?, initrd, command_line, root: root? })
}

fn read_part(fields: &mut Reader<'_>) -> Option<Part> {
    let sha256: Option<String> = fields.required("sha256");
    let size = fields.required("size");
    let is_digest = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if sha256.as_ref().is_some_and(|text| !is_digest(text)) {
        fields.problem("sha256", "must be 64 hexadecimal digits", None);
    }
    Some(Part { sha256: sha256.filter(is_digest)?.to_ascii_lowercase(), size: size? })
}
