//! The memory store passes the suite, on a paused clock: leases end in no time.

use std::sync::Arc;

use lightbyte_store::conformance::{MemorySubject, conformance};

#[tokio::test(start_paused = true)]
async fn memory_conforms() {
    conformance(Arc::new(MemorySubject::default())).await;
}
