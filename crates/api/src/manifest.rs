//! Manifests: what a person asks for, `{kind, name, labels, spec}`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::kinds::{Kind, Spec};
use crate::name::Name;
use crate::object::{LABEL_LENGTH_MAX, LABELS_MAX, ObjectRef};
use crate::reader::{Problem, Reader, nearest};

/// The longest name that a person may give: what is left of a DNS label when children have added their suffixes.
pub const GIVEN_NAME_LENGTH_MAX: usize = 40;

/// How many documents one request may hold.
pub const DOCUMENTS_MAX: usize = 200;

/// One object that a person asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// Its name.
    pub name: Name,
    /// What the person attaches.
    pub labels: BTreeMap<String, String>,
    /// What is asked, with all defaults filled in.
    pub spec: Spec,
}

impl Manifest {
    /// Reads one document.
    ///
    /// # Errors
    /// Every problem that was found, each with its path.
    pub fn read(document: &Value) -> Result<Manifest, Vec<Problem>> {
        let mut problems = Vec::new();
        let manifest = read(document, &mut problems);
        match manifest {
            Some(manifest) if problems.is_empty() => Ok(manifest),
            _ => Err(problems),
        }
    }

    /// The object that it speaks of.
    #[must_use]
    pub fn object(&self) -> ObjectRef {
        ObjectRef::new(self.spec.kind(), self.name.clone())
    }
}

fn read(document: &Value, problems: &mut Vec<Problem>) -> Option<Manifest> {
    let mut fields = Reader::new("", document, problems);
    let word: Option<String> = fields.required("kind");
    let name: Option<Name> = fields.required("name");
    if let Some(length) =
        name.as_ref().map(|name| name.as_str().len()).filter(|length| *length > GIVEN_NAME_LENGTH_MAX)
    {
        let message = format!("has {length} characters, at most {GIVEN_NAME_LENGTH_MAX} are allowed");
        fields.problem("name", message, Some("the rest is kept for the names of its children".to_owned()));
    }
    let labels = read_labels(&mut fields, "labels");
    let kind = word.and_then(|word| read_kind(&word, &mut fields));
    let empty = Value::Object(serde_json::Map::new());
    let spec_value: Value = fields.or("spec", empty);
    fields.finish();
    let mut spec_fields = Reader::new("spec", &spec_value, problems);
    let spec = kind.and_then(|kind| {
        let spec = Spec::read(kind, &mut spec_fields);
        spec_fields.finish();
        spec
    });
    Some(Manifest { name: name?, labels, spec: spec? })
}

fn read_kind(word: &str, fields: &mut Reader<'_>) -> Option<Kind> {
    word.parse::<Kind>()
        .map_err(|error| fields.problem("kind", error.to_string(), Some(kind_hint(word))))
        .ok()
}

/// What to say to a person whose kind does not exist.
#[must_use]
pub fn kind_hint(word: &str) -> String {
    let words: Vec<&str> = Kind::ALL.iter().map(|kind| kind.word()).collect();
    match nearest(word, &words) {
        Some(kind) => format!("did you mean `{kind}`?"),
        None => format!("kinds are: {}", words.join(", ")),
    }
}

/// Reads `labels`.
pub(crate) fn read_labels(fields: &mut Reader<'_>, field: &'static str) -> BTreeMap<String, String> {
    let labels: BTreeMap<String, String> = fields.or(field, BTreeMap::new());
    if labels.len() > LABELS_MAX {
        fields.problem(field, format!("has {} labels, at most {LABELS_MAX} are allowed", labels.len()), None);
    }
    for (key, value) in &labels {
        if key.is_empty() || !is_label_text(key) || !is_label_text(value) {
            fields.problem(&format!("{field}.{key}"), label_rule(), None);
        }
    }
    labels
}

/// Whether a label's key or value may be so.
pub(crate) fn is_label_text(text: &str) -> bool {
    text.len() <= LABEL_LENGTH_MAX
        && text.chars().all(|character| character.is_ascii_alphanumeric() || "-_./".contains(character))
}

pub(crate) fn label_rule() -> String {
    format!("keys and values have at most {LABEL_LENGTH_MAX} letters, digits, -, _, . or /")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(document: &Value, expect: &[&str]) {
        let found = match Manifest::read(document) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(found, expect, "{document}");
    }

    #[test]
    fn the_shortest_vm_is_complete() {
        let manifest =
            Manifest::read(&json!({"kind": "vm", "name": "a", "spec": {"image": "demo"}})).unwrap();
        let spec = manifest.spec.to_json().unwrap();
        assert_eq!(spec["memory"], "128MiB");
        assert_eq!(spec["disks"][0]["name"], "root");
        assert_eq!(spec["nics"][0]["network"], "default");
    }

    #[test]
    fn ten_errors_are_reported_at_once() {
        check(
            &json!({
                "kind": "vm", "name": "Web", "lables": {},
                "labels": {"a b": "c"},
                "spec": {
                    "cpus": 0, "memory": "1MiB", "memroy": 1, "running": "yes", "on_worker_loss": {"recreate": {"after": "30s"}},
                    "disks": [{"name": "data", "sise": 1}, {"size": "0"}],
                    "nics": [{"network": "LAN"}],
                }
            }),
            &[
                "name: a name is made of a-z, 0-9 and -, begins with a letter and does not end with -; `W` at 1 is not",
                "labels.a b: keys and values have at most 63 letters, digits, -, _, . or /",
                "lables: is not a field here (did you mean `labels`?)",
                "spec.image: is missing",
                "spec.cpus: must be between 1 and 32, is 0",
                "spec.running: invalid type: string \"yes\", expected a boolean",
                "spec.on_worker_loss: `recreate` needs fencing, which this version does not have \
                 (use `wait`; a group replaces lost members without it)",
                "spec.disks[0].size: is missing (such as 10GiB; or name a volume to attach)",
                "spec.disks[0].sise: is not a field here (did you mean `size`?)",
                "spec.disks[1].name: is missing",
                "spec.disks[1].size: must be more than 0 and at most 64TiB",
                "spec.nics[0].network: a name is made of a-z, 0-9 and -, begins with a letter and does not end with -; \
                 `L` at 1 is not",
                "spec.memory: must be between 64MiB and 1TiB, is 1MiB",
                "spec.memroy: is not a field here (did you mean `memory`?)",
            ],
        );
    }

    #[test]
    fn what_is_no_manifest_says_so() {
        check(&json!([]), &["expected fields, found a list"]);
        check(
            &json!({"kind": "vmm", "name": "a"}),
            &["kind: `vmm` is not a kind of object (did you mean `vm`?)"],
        );
        check(&json!({"kind": "vm", "name": "a", "spec": 3}), &["spec: expected fields, found a number"]);
        check(
            &json!({"kind": "network", "name": "lan", "spec": {"subnet": "10.0.0.0/8", "gateway": "192.168.0.1"}}),
            &[
                "spec.gateway: 192.168.0.1 is not a host address of 10.0.0.0/8",
                "spec.pool_last: the pool has 16777213 addresses, at most 65536 are allowed \
                 (name a smaller range with pool_first and pool_last)",
            ],
        );
        let network = |more: Value| {
            let mut spec = json!({"subnet": "10.0.0.0/24"});
            spec.as_object_mut().expect("fields").extend(more.as_object().cloned().expect("fields"));
            json!({"kind": "network", "name": "lan", "spec": spec})
        };
        check(
            &network(json!({"subnet6": "fd00::/65", "gateway6": "2001:db8::1"})),
            &[
                "spec.subnet6: fd00::/65 is too small (the last 64 bits are the VM's; a /64 is the least)",
                "spec.gateway6: 2001:db8::1 is neither in fd00::/65 nor link-local",
            ],
        );
        check(
            &network(json!({"subnet6": "auto", "gateway6": "fe80::1"})),
            &[
                "spec.gateway6: is what routers say where subnet6 is `auto` (leave it out, or name the subnet)",
            ],
        );
        check(
            &network(json!({"subnet6": "ff05::/64"})),
            &["spec.subnet6: ff05::/64 has no addresses that a VM could have \
               (such as fd00:77::/64, or what your provider has given you)"],
        );
        check(&network(json!({"gateway6": "fe80::1"})), &["spec.gateway6: needs subnet6"]);
        check(
            &network(json!({"subnet6": "fd00::1/64"})),
            &["spec.subnet6: `fd00::1/64` has host bits set; the subnet is `fd00::/64`"],
        );
        check(&network(json!({"subnet": "dhcp", "subnet6": "auto", "dns": ["10.0.0.53"]})), &[]);
        check(
            &network(
                json!({"subnet": "dhcp", "gateway": "10.0.0.1", "pool_last": "10.0.0.9", "subnet6": "fd00::/64"}),
            ),
            &[
                "spec.gateway: is what the DHCP server says where subnet is `dhcp` (leave it out, or name the subnet)",
                "spec.pool_last: is what the DHCP server says where subnet is `dhcp` (leave it out, or name the subnet)",
                "spec.subnet6: needs a pool: addresses of it are made from those of the pool (say `auto`, or leave it out)",
            ],
        );
        check(
            &network(json!({"subnet": "dchp"})),
            &["spec.subnet: `dchp` is not a subnet such as 10.77.0.0/16"],
        );
        check(&network(json!({"subnet6": "fd00::/64", "gateway6": "fe80::1", "dns": ["fd00::53"]})), &[]);
        check(
            &json!({"kind": "image", "name": "demo", "spec": {"current": "v1", "versions": [{"version": "v2", "kernel": {"sha256": "ab", "size": 1}}]}}),
            &[
                "spec.versions[0].kernel.sha256: must be 64 hexadecimal digits",
                "spec.versions[0].kernel: is missing or incomplete (a part is {sha256, size})",
                "spec.versions[0].root: is missing or incomplete (a part is {sha256, size})",
                "spec.current: version `v1` is not listed under versions (listed: none)",
            ],
        );
    }
}
