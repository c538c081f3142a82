//! The routes of one host, by path.

use std::collections::HashMap;

use lightbyte_api::topology::PathMatch;

/// Exact paths and prefixes, each with its routes in their order.
#[derive(Debug, Default)]
pub(super) struct Paths {
    exact: HashMap<String, Vec<usize>>,
    /// Without a slash at their end; the root is empty.
    prefixes: HashMap<String, Vec<usize>>,
    /// The length of the longest prefix: where to begin with a long path.
    prefix_bytes_max: usize,
}

impl Paths {
    pub(super) fn add(&mut self, path: &PathMatch, route: usize) {
        match path {
            PathMatch::Exact(path) => self.exact.entry(path.clone()).or_default().push(route),
            PathMatch::Prefix(path) => {
                let path = path.trim_end_matches('/');
                self.prefix_bytes_max = self.prefix_bytes_max.max(path.len());
                self.prefixes.entry(path.to_owned()).or_default().push(route);
            }
        }
    }

    /// The first route that fits: of the exact path, then of the longest prefix and the shorter ones.
    pub(super) fn find(&self, path: &str, fits: impl Fn(&usize) -> bool + Copy) -> Option<usize> {
        let first = |routes: &Vec<usize>| routes.iter().copied().find(|route| fits(route));
        if let Some(route) = self.exact.get(path).and_then(first) {
            return Some(route);
        }
        // A prefix ends where a segment ends: at a slash or at the path's end.
        let mut end = if path.len() <= self.prefix_bytes_max { path.len() } else { self.end_within(path) };
        loop {
            if let Some(route) = self.prefixes.get(&path[..end]).and_then(first) {
                return Some(route);
            }
            end = path[..end].rfind('/')?;
        }
    }

    /// The last segment's end that a prefix could have.
    fn end_within(&self, path: &str) -> usize {
        let window = path.as_bytes().get(..=self.prefix_bytes_max).unwrap_or_default();
        window.iter().rposition(|byte| *byte == b'/').unwrap_or_default()
    }
}
