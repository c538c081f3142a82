//! Debian packages that have to be installed, and how their absence is seen: by looking for what is used, not by
//! asking dpkg, so that a compiler from elsewhere counts too.

use std::path::Path;

use super::Scope;
use crate::workspace::find_tool;

/// A package and what is looked for instead of the package.
pub(super) struct Package {
    pub(super) name: &'static str,
    needed: &'static [Needed],
    about: &'static str,
    scope: Scope,
}

enum Needed {
    /// A program in `PATH` or in a directory for administrators.
    Tool(&'static str),
    /// A file in one of these places.
    File(&'static [&'static str]),
}

const PACKAGES: &[Package] = &[
    Package {
        name: "build-essential",
        needed: &[Needed::Tool("cc"), Needed::Tool("make"), Needed::File(&["/usr/include/stdio.h"])],
        about: "a C compiler with its headers, and make: crates with C in them, and the linker",
        scope: Scope::WithoutVms,
    },
    Package {
        name: "protobuf-compiler",
        needed: &[Needed::Tool("protoc")],
        about: "protoc: etcd's client is generated from its protocol files",
        scope: Scope::WithoutVms,
    },
    Package {
        name: "libprotobuf-dev",
        needed: &[Needed::File(&[
            "/usr/include/google/protobuf/descriptor.proto",
            "/usr/local/include/google/protobuf/descriptor.proto",
        ])],
        about: "google/protobuf/*.proto, which etcd's protocol files include",
        scope: Scope::WithoutVms,
    },
    Package {
        name: "cmake",
        needed: &[Needed::Tool("cmake")],
        about: "cmake: builds a compression library in C that pingora, the proxy's HTTP library, depends on",
        scope: Scope::WithoutVms,
    },
    Package {
        name: "iproute2",
        needed: &[Needed::Tool("ip")],
        about: "ip: the lab's network namespaces and bridges",
        scope: Scope::Everything,
    },
    Package {
        name: "nftables",
        needed: &[Needed::Tool("nft")],
        about: "nft: anti-spoofing rules of VM taps",
        scope: Scope::Everything,
    },
    Package {
        name: "qemu-system-x86",
        needed: &[Needed::Tool("qemu-system-x86_64")],
        about: "the emulator that runs VMs where KVM is not usable",
        scope: Scope::Everything,
    },
    Package {
        name: "qemu-system-data",
        needed: &[Needed::File(&["/usr/share/qemu/qboot.rom", "/usr/share/qboot/bios.bin"])],
        about: "qboot.rom: the quickest firmware of QEMU's microvm",
        scope: Scope::Everything,
    },
    Package {
        name: "seabios",
        needed: &[Needed::File(&["/usr/share/seabios/bios-microvm.bin", "/usr/share/qemu/bios-microvm.bin"])],
        about: "bios-microvm.bin: the firmware that the microvm machine names by default",
        scope: Scope::Everything,
    },
    Package {
        name: "e2fsprogs",
        needed: &[Needed::Tool("mke2fs"), Needed::Tool("resize2fs")],
        about: "mke2fs and resize2fs: root file systems without root",
        scope: Scope::Everything,
    },
    Package {
        name: "xfsprogs",
        needed: &[Needed::Tool("mkfs.xfs")],
        about: "mkfs.xfs: tests of disks on a file system that shares blocks",
        scope: Scope::Everything,
    },
    Package {
        name: "mmdebstrap",
        needed: &[Needed::Tool("mmdebstrap")],
        about: "mmdebstrap: makes a bare Debian in a directory",
        scope: Scope::BareDebian,
    },
];

impl std::fmt::Display for Package {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} ({}); Debian's package is {}", self.needs(), self.about, self.name)
    }
}

impl Package {
    fn needs(&self) -> String {
        let names: Vec<&str> = self
            .needed
            .iter()
            .map(|needed| match needed {
                Needed::Tool(name) => *name,
                Needed::File(places) => places.first().copied().unwrap_or(self.name),
            })
            .collect();
        names.join(", ")
    }

    fn is_there(&self) -> bool {
        self.needed.iter().all(|needed| match needed {
            Needed::Tool(name) => find_tool(name).is_some(),
            Needed::File(places) => places.iter().any(|place| Path::new(place).is_file()),
        })
    }
}

/// Packages of which something is missing. Looks at files only.
pub(super) fn missing(scope: Scope) -> Vec<&'static Package> {
    PACKAGES.iter().filter(|package| scope.covers(package.scope) && !package.is_there()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_missing_when_any_of_its_files_or_tools_is() {
        let table: [(&'static [Needed], bool); 5] = [
            (&[Needed::Tool("sh")], true),
            (&[Needed::Tool("no-such-tool-of-lightbyte")], false),
            (&[Needed::Tool("sh"), Needed::Tool("no-such-tool-of-lightbyte")], false),
            (&[Needed::File(&["/no/such/file", "/proc/version"])], true),
            (&[Needed::File(&["/no/such/file"])], false),
        ];
        for (needed, expected) in table {
            let package = Package { name: "p", needed, about: "a", scope: Scope::Everything };
            assert_eq!(package.is_there(), expected, "{package}");
        }
    }
}
