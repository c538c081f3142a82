//! Keys beside the root: what belongs to a cluster and is no part of its view.
//!
//! A key that begins with `-` lies beside the store's root, not under it: with the root `/lightbyte/v1/` the key
//! `-events/told` is `/lightbyte/v1-events/told` in etcd. A list of everything leaves such keys out; a list of their own
//! prefix has them.
//!
//! **A watch of everything hears of them all the same**, and whoever keeps the view passes them over. Were they not heard,
//! a write of one would raise the store's revision by something that a watch never delivers. How far the watch is would
//! then be known by its progress reports alone, which take a second at best, and members of etcd before 3.4.25 and 3.5.8
//! give none that can be believed when asked: a leader that must know that its view is fresh would wait after each such write.

/// What a key beside the root begins with.
pub const MARK: char = '-';

/// Whether a key lies beside the root.
#[must_use]
pub fn is_beside(key: &str) -> bool {
    key.starts_with(MARK)
}
