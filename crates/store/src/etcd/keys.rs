//! Between keys of etcd and keys of this crate: the root prefix comes and goes here.

use bytes::Bytes;
use etcd_client::proto::PbKeyValue;

use crate::beside::{MARK, is_beside};
use crate::error::{StoreError, cause};
use crate::rules::ROOT_BYTES_MAX;
use crate::store::{LeaseId, Revision, Versioned};

/// What stands before every key of this store in etcd.
#[derive(Debug, Clone)]
pub(super) struct Root(String);

impl Root {
    pub(super) fn new(root: String) -> Result<Self, StoreError> {
        if root.is_empty() || root.len() > ROOT_BYTES_MAX {
            let text = format!("the root prefix has {} bytes, not 1 to {ROOT_BYTES_MAX}", root.len());
            return Err(StoreError::Misconfigured(cause(text)));
        }
        Ok(Self(root))
    }

    /// The key in etcd.
    pub(super) fn full(&self, key: &str) -> Vec<u8> {
        let root = if is_beside(key) { self.stem() } else { &self.0 };
        [root.as_bytes(), key.as_bytes()].concat()
    }

    /// What stands before every key [beside](crate::beside) the root.
    fn stem(&self) -> &str {
        self.0.strip_suffix('/').unwrap_or(&self.0)
    }

    /// The range of keys that a watch of this prefix hears of: with an empty one also those beside the root, which stand
    /// right before it (`-` comes before `/`). Others may stand between, and are left out by [`Root::strip`].
    pub(super) fn watched(&self, prefix: &str) -> (Vec<u8>, Vec<u8>) {
        let full = self.full(prefix);
        let end = range_end(&full);
        let start = if prefix.is_empty() { self.full(&MARK.to_string()).min(full) } else { full };
        (start, end)
    }

    /// The key without the root; nothing for a key that is not this store's. Keys are written by this crate, so they are
    /// text; anything else is shown as well as it can be rather than left out, since what is left out looks deleted.
    pub(super) fn strip(&self, full: &[u8]) -> Option<String> {
        let beside = || full.strip_prefix(self.stem().as_bytes()).filter(|key| key.first() == Some(&b'-'));
        let key = full.strip_prefix(self.0.as_bytes()).or_else(beside)?;
        Some(String::from_utf8_lossy(key).into_owned())
    }

    /// A key and its value.
    pub(super) fn entry(&self, found: PbKeyValue) -> Option<(String, Versioned)> {
        Some((self.strip(&found.key)?, versioned(found)))
    }
}

/// The end of the range of all keys that begin with `prefix`, which is not empty.
pub(super) fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // All bytes are 255: to the end of all keys.
    vec![0]
}

/// A value as this crate shows it.
pub(super) fn versioned(found: PbKeyValue) -> Versioned {
    let lease = (found.lease != 0).then_some(LeaseId(found.lease));
    Versioned { value: Bytes::from(found.value), mod_revision: revision(found.mod_revision), lease }
}

/// A revision of etcd, which is never negative.
pub(super) fn revision(revision: i64) -> Revision {
    Revision::try_from(revision).unwrap_or_default()
}

/// A revision for etcd. It counts to 2^63 - 1 itself, so a larger one is in the future all the same.
pub(super) fn to_etcd(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_ends_follow_their_prefix() {
        let check = |prefix: &[u8], end: &[u8]| assert_eq!(range_end(prefix), end, "{prefix:?}");
        check(b"/lightbyte/v1/", b"/lightbyte/v10");
        check(b"a", b"b");
        check(&[b'a', 255], b"b");
        check(&[255, 255], &[0]);
    }

    #[test]
    fn keys_beside_the_root_come_back_and_those_of_others_do_not() {
        let root = Root::new("/lightbyte/v1/".to_owned()).unwrap();
        let check = |key: &str, full: &str| {
            assert_eq!(root.full(key), full.as_bytes(), "{key}");
            assert_eq!(root.strip(full.as_bytes()).as_deref(), Some(key), "{full}");
            let (start, end) = root.watched("");
            assert!(start.as_slice() <= full.as_bytes() && full.as_bytes() < end.as_slice(), "{full}");
        };
        check("asked/vm/a", "/lightbyte/v1/asked/vm/a");
        check("-events/told", "/lightbyte/v1-events/told");
        for other in ["/lightbyte/v1", "/lightbyte/v1.x", "/lightbyte/v10/a", "/other"] {
            assert_eq!(root.strip(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn roots_are_bounded() {
        let check = |root: &str, fine: bool| assert_eq!(Root::new(root.to_owned()).is_ok(), fine, "{root:?}");
        check("", false);
        check("/", true);
        check(&"r".repeat(ROOT_BYTES_MAX), true);
        check(&"r".repeat(ROOT_BYTES_MAX + 1), false);
    }
}
