//! Reads: one key, or all keys of a prefix at one revision.

use std::time::Duration;

use etcd_client::proto::PbRangeResponse;
use etcd_client::{GetOptions, KvClient};

use super::call::{About, Failure};
use super::keys::{range_end, revision, to_etcd, versioned};
use super::{DECODE_BYTES_MAX, Inner, incomplete};
use crate::beside::is_beside;
use crate::error::StoreError;
use crate::store::{Listing, Read, Revision, Versioned};

/// How long one try of a single read may take. Shorter than other requests: it may be repeated at once elsewhere, and
/// a stopped member must not cost a leader its lease.
const GET_TIMEOUT: Duration = Duration::from_secs(2);

/// The size in bytes that a page of a list aims at: large enough that few are needed, small enough that a member
/// does not stall on one.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// The keys of the first page, when nothing is known of their sizes. With 256 values of the largest size it would
/// not fit the decode limit; then the page is halved.
const PAGE_KEYS_FIRST: usize = 256;

/// The most keys of a page, however small they are.
const PAGE_KEYS_MAX: usize = 10_000;

impl Inner {
    pub(super) fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(DECODE_BYTES_MAX)
    }

    pub(super) async fn get(&self, key: &str) -> Result<Read, StoreError> {
        let full = self.root.full(key);
        let answer = self.repeat(GET_TIMEOUT, About::default(), || {
            let (mut kv, full) = (self.kv(), full.clone());
            async move { kv.get(full, None).await }
        });
        let mut answer: PbRangeResponse = answer.await?.0;
        let header = answer.header.take().ok_or_else(|| incomplete("header"))?;
        Ok(Read { revision: revision(header.revision), value: answer.kvs.pop().map(versioned) })
    }

    pub(super) async fn list(&self, prefix: &str, at: Option<Revision>) -> Result<Listing, StoreError> {
        // A root that does not end with `/` has what is beside it under it.
        let is_wanted = |(key, _): &(String, Versioned)| !prefix.is_empty() || !is_beside(key);
        let prefix = self.root.full(prefix);
        let end = range_end(&prefix);
        let mut start = prefix;
        let mut pinned = at;
        let mut page_keys = PAGE_KEYS_FIRST;
        let mut entries = Vec::new();
        loop {
            let answer = match self.page(&start, &end, pinned, page_keys).await {
                Err(Failure::Oversized(_)) if page_keys > 1 => {
                    page_keys /= 2;
                    continue;
                }
                answer => answer?,
            };
            let header = answer.header.as_ref().ok_or_else(|| incomplete("header"))?;
            // The first page fixes the revision, every later one is read at it.
            let revision = *pinned.get_or_insert(revision(header.revision));
            let more = answer.more;
            page_keys = next_page_keys(&answer, page_keys);
            if let Some(last) = answer.kvs.last() {
                start = [last.key.as_slice(), &[0]].concat();
            }
            let none = answer.kvs.is_empty();
            entries
                .extend(answer.kvs.into_iter().filter_map(|found| self.root.entry(found)).filter(is_wanted));
            if !more || none {
                return Ok(Listing { revision, entries });
            }
        }
    }

    async fn page(
        &self,
        start: &[u8],
        end: &[u8],
        at: Option<Revision>,
        keys: usize,
    ) -> Result<PbRangeResponse, Failure> {
        let options = GetOptions::new()
            .with_range(end)
            .with_limit(i64::try_from(keys).unwrap_or(i64::MAX))
            .with_revision(at.map_or(0, to_etcd));
        let about = About { revision: at, ..About::default() };
        let answer = self.repeat(self.request_timeout, about, || {
            let (mut kv, start, options) = (self.kv(), start.to_vec(), options.clone());
            async move { kv.get(start, Some(options)).await }
        });
        Ok(answer.await?.0)
    }

    /// Whether the state at a revision can still be read.
    pub(super) async fn readable_at(&self, at: Revision) -> Result<(), Failure> {
        let about = About { revision: Some(at), ..About::default() };
        let answer = self.repeat(GET_TIMEOUT, about, || {
            let options = GetOptions::new().with_revision(to_etcd(at)).with_limit(1).with_keys_only();
            let (mut kv, key) = (self.kv(), self.root.full(""));
            async move { kv.get(key, Some(options)).await }
        });
        answer.await.map(drop)
    }
}

/// As many keys as would fill a page if they were like the last ones; never many more at once, since they may not be.
fn next_page_keys(answer: &PbRangeResponse, page_keys: usize) -> usize {
    let bytes: usize = answer.kvs.iter().map(|found| found.key.len() + found.value.len()).sum();
    let mean = bytes / answer.kvs.len().max(1);
    (PAGE_BYTES / mean.max(1)).clamp(1, (page_keys * 4).min(PAGE_KEYS_MAX))
}
