//! Tables: columns padded to their widest cell, two spaces between. And what stands in them for each kind.

use lightbyte_api::object::Object;
use lightbyte_api::{ByteSize, Kind, Timestamp};
use serde_json::Value;

use self::Cell::{At, Because, Count, Labels, Of, Ratio, Since};

/// What stands where there is nothing to say.
pub(crate) const NOTHING: &str = "-";

/// Lays out rows, the first of them the head. The last column is not padded, so that no line ends in spaces.
pub(crate) fn lay_out(rows: &[Vec<String>]) -> String {
    let widths = widths(rows);
    rows.iter().map(|row| line(row, &widths) + "\n").collect()
}

/// The width of each column in characters.
pub(crate) fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    (0..columns).map(|column| width(column).unwrap_or(0)).collect()
}

/// One row in columns of these widths, or wider where it must be.
pub(crate) fn line(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().enumerate().map(|(column, cell)| {
        let width = widths.get(column).copied().unwrap_or(0);
        format!("{cell:<width$}")
    });
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

/// Where a cell's text comes from.
#[derive(Clone, Copy)]
enum Cell {
    /// A value of the object (JSON pointer, RFC 6901).
    At(&'static str),
    /// How many items a list has.
    Count(&'static str),
    /// `used/total`.
    Of(&'static str, &'static str),
    /// `used/total`, worked out.
    Ratio(&'static str, &'static str),
    /// How long it has been in its state.
    Since,
    /// What it waits for.
    Because,
    /// `k=v,k=v`.
    Labels,
}

/// A head and its cells.
type Column = (&'static str, Cell);

const STATE: Column = ("STATE", At("/status/state"));
const SINCE: Column = ("SINCE", Since);

/// The columns of a table, and those that a wide one has besides.
type Columns = (&'static [Column], &'static [Column]);

/// The columns of a kind that has more to show than its state.
const COLUMNS: &[(Kind, Columns)] = &[
    (
        Kind::Vm,
        (
            &[
                STATE,
                ("WORKER", At("/status/worker")),
                ("ADDRESS", At("/status/addresses")),
                ("IMAGE", At("/spec/image")),
                SINCE,
            ],
            &[
                ("CPUS", At("/spec/cpus")),
                ("MEMORY", At("/spec/memory")),
                ("VERSION", At("/status/image_version")),
                ("RESTARTS", At("/status/restarts")),
            ],
        ),
    ),
    (
        Kind::ScaleGroup,
        (
            &[
                STATE,
                ("AVAILABLE", Of("/status/available", "/status/replicas")),
                ("VERSION", At("/status/version")),
                ("IMAGE", At("/spec/template/image")),
                SINCE,
            ],
            &[
                ("UPDATED", At("/status/updated")),
                ("STABLE", At("/status/stable")),
                ("MEMBERS", Count("/status/members")),
            ],
        ),
    ),
    (
        Kind::LoadBalancer,
        (
            &[
                STATE,
                ("ADDRESS", At("/status/virtual_address/address")),
                ("PROXIES", Of("/status/proxies_told", "/status/proxies_wanted")),
                ("BACKENDS", At("/status/backends")),
                SINCE,
            ],
            &[("REVISION", At("/status/revision"))],
        ),
    ),
    (
        Kind::Secret,
        (
            &[STATE, ("NAMES", At("/status/server_names")), ("EXPIRES", At("/status/expires_at"))],
            &[
                ("BEGINS", At("/status/begins_at")),
                ("SEALED WITH", At("/status/sealed_with")),
                ("FINGERPRINT", At("/status/fingerprint")),
            ],
        ),
    ),
    (
        Kind::Worker,
        (
            &[
                STATE,
                ("VMS", At("/status/vms")),
                ("CPUS", Of("/status/cpus_used", "/status/cpus")),
                ("MEMORY", Of("/status/memory_used", "/status/memory")),
                SINCE,
            ],
            &[
                ("OVERCOMMIT", Ratio("/status/cpus_used", "/status/host_cpus")),
                ("ADDRESS", At("/status/address")),
                ("ARCHITECTURE", At("/status/architecture")),
                ("VMM", At("/status/vmm")),
                ("VERSION", At("/status/version")),
            ],
        ),
    ),
    (
        Kind::Image,
        (&[STATE, ("CURRENT", At("/spec/current")), ("VERSIONS", Count("/spec/versions")), SINCE], &[]),
    ),
    (
        Kind::Network,
        (
            &[
                STATE,
                ("SUBNET", At("/spec/subnet")),
                ("ADDRESSES", Of("/status/addresses_used", "/status/addresses")),
            ],
            &[
                ("GATEWAY", At("/spec/gateway")),
                ("FIRST", At("/spec/pool_first")),
                ("LAST", At("/spec/pool_last")),
                ("BRIDGE", At("/spec/bridge")),
            ],
        ),
    ),
    (
        Kind::Volume,
        (
            &[
                STATE,
                ("SIZE", At("/status/size")),
                ("WORKER", At("/status/worker")),
                ("ATTACHED", At("/status/attached_to")),
                SINCE,
            ],
            &[
                ("IMAGE", At("/spec/image")),
                ("VERSION", At("/spec/image_version")),
                ("SNAPSHOT", At("/spec/snapshot")),
            ],
        ),
    ),
    (
        Kind::Snapshot,
        (
            &[
                STATE,
                ("VOLUME", At("/spec/volume")),
                ("SIZE", At("/status/size")),
                ("WORKER", At("/status/worker")),
                SINCE,
            ],
            &[],
        ),
    ),
];

/// The columns of a kind.
fn columns(kind: Kind) -> Columns {
    COLUMNS.iter().find(|(of, _)| *of == kind).map_or((&[STATE, SINCE], &[]), |(_, columns)| *columns)
}

/// The columns that end every wide table.
const WIDE: [Column; 4] =
    [("GENERATION", At("/generation")), ("UID", At("/uid")), ("LABELS", Labels), ("WAITING", Because)];

fn columns_of(kind: Kind, wide: bool) -> impl Iterator<Item = &'static Column> {
    let (short, more) = columns(kind);
    let more: &[Column] = if wide { more } else { &[] };
    let last: &[Column] = if wide { &WIDE } else { &[] };
    short.iter().chain(more).chain(last)
}

/// The head of a kind's table.
pub(crate) fn head(kind: Kind, wide: bool) -> Vec<String> {
    std::iter::once("NAME").chain(columns_of(kind, wide).map(|(head, _)| *head)).map(str::to_owned).collect()
}

/// An object's row in its kind's table.
pub(crate) fn row(object: &Object, wide: bool, now: Timestamp) -> Vec<String> {
    let value = serde_json::to_value(object).unwrap_or_default();
    let cells = columns_of(object.kind, wide).map(|(_, cell)| text(*cell, &value, object, now));
    std::iter::once(object.name.to_string()).chain(cells).collect()
}

/// A row that says that an object is gone.
pub(crate) fn row_of_gone(name: &str, kind: Kind) -> Vec<String> {
    let rest = head(kind, false).len().saturating_sub(2);
    [name, "gone"].into_iter().chain(std::iter::repeat_n(NOTHING, rest)).map(str::to_owned).collect()
}

fn text(cell: Cell, value: &Value, object: &Object, now: Timestamp) -> String {
    let at = |pointer: &str| plain(value.pointer(pointer).unwrap_or(&Value::Null));
    match cell {
        At(pointer) => at(pointer),
        Count(pointer) => {
            let count = value.pointer(pointer).and_then(Value::as_array).map(Vec::len);
            count.map_or_else(|| NOTHING.to_owned(), |count| count.to_string())
        }
        Of(used, total) => match (at(used), at(total)) {
            (used, total) if used == NOTHING && total == NOTHING => used,
            (used, total) => format!("{used}/{total}"),
        },
        Ratio(used, total) => {
            let number = |pointer| value.pointer(pointer).and_then(Value::as_f64);
            match (number(used), number(total).filter(|total| *total > 0.0)) {
                (Some(used), Some(total)) => format!("{:.2}", used / total),
                _ => NOTHING.to_owned(),
            }
        }
        Since => object.status.since.map_or_else(|| NOTHING.to_owned(), |since| age(since, now)),
        Because => {
            let reasons: Vec<String> =
                object.status.waiting_on.iter().map(|waiting| waiting.on.to_string()).collect();
            if reasons.is_empty() { NOTHING.to_owned() } else { reasons.join("; ") }
        }
        Labels => {
            let labels: Vec<String> =
                object.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            if labels.is_empty() { NOTHING.to_owned() } else { labels.join(",") }
        }
    }
}

/// A value as one word, where it can be one.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => NOTHING.to_owned(),
        Value::Array(items) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            items.iter().map(plain).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

/// How long ago, in the largest unit that gives at least 2: `45s`, `90s`, `3m`, `5h`, `9d`. A clock that runs behind
/// the server's sees the future, which counts as now.
pub(crate) fn age(since: Timestamp, now: Timestamp) -> String {
    seconds(now.duration_since(since).as_secs().max(0).unsigned_abs())
}

/// So many seconds, in the largest unit that says enough.
pub(crate) fn seconds(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes in the largest unit that gives at least 10.
pub(crate) fn size(bytes: u64) -> String {
    let units = [1_u64 << 40, 1 << 30, 1 << 20, 1 << 10];
    let unit = units.into_iter().find(|unit| bytes / unit >= 10).unwrap_or(1);
    ByteSize::from_bytes(bytes / unit * unit).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn vm() -> Object {
        serde_json::from_value(json!({
            "kind": "vm", "name": "hello", "uid": "0193a5c0-7d3e-7c4a-9b1e-2f6d8a4b0c1d", "generation": 2,
            "labels": {"app": "web", "tier": "a"}, "owner": null,
            "spec": {"image": "demo", "cpus": 1, "memory": "128MiB"},
            "status": {
                "state": "starting", "ready": false, "since": "2026-11-22T10:00:00Z", "deadline": null,
                "waiting_on": [{"reason": "worker", "worker": "n1", "to": "start", "since": "2026-11-22T10:00:00Z"}],
                "worker": "n1", "addresses": ["10.0.0.2/24", "10.1.0.2/24"], "image_version": "v1", "restarts": 0,
            },
        }))
        .unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn columns_are_padded_and_lines_do_not_end_in_spaces() {
        let rows = [vec!["NAME", "STATE", "X"], vec!["a", "running", "ü"], vec!["longer-name", "-", ""]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
        let expect = "NAME         STATE    X\na            running  ü\nlonger-name  -\n";
        assert_eq!(lay_out(&rows), expect);
        assert_eq!(lay_out(&[]), "");
    }

    #[test]
    fn a_vm_has_one_line() {
        let now = at("2026-11-22T10:01:30Z");
        let check = |wide: bool, expect: &str| {
            assert_eq!(lay_out(&[head(Kind::Vm, wide), row(&vm(), wide, now)]), expect);
        };
        check(
            false,
            "NAME   STATE     WORKER  ADDRESS                  IMAGE  SINCE\n\
             hello  starting  n1      10.0.0.2/24,10.1.0.2/24  demo   90s\n",
        );
        let wide = row(&vm(), true, now).join("|");
        assert!(
            wide.ends_with("|2|0193a5c0-7d3e-7c4a-9b1e-2f6d8a4b0c1d|app=web,tier=a|worker `n1` to start it")
        );
        assert_eq!(row_of_gone("hello", Kind::Vm), ["hello", "gone", "-", "-", "-", "-"]);
    }

    #[test]
    fn every_row_has_the_columns_of_its_head() {
        for kind in Kind::ALL {
            let object = Object { kind: *kind, ..vm() };
            for wide in [false, true] {
                let now = at("2026-11-22T10:00:00Z");
                assert_eq!(row(&object, wide, now).len(), head(*kind, wide).len(), "{kind}");
            }
        }
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let check = |seconds: i64, expect: &str| {
            let now = Timestamp::from_second(1_000_000 + seconds).unwrap();
            assert_eq!(age(Timestamp::from_second(1_000_000).unwrap(), now), expect);
        };
        check(-5, "0s");
        check(119, "119s");
        check(120, "2m");
        check(7_200, "2h");
        check(3 * 86_400, "3d");
        assert_eq!(size(25 * 1024 + 3), "25KiB");
        assert_eq!(size(9_000), "9000B");
    }
}
