//! Transactions: one try. What tries add up to is [`crate::settle`]'s business.

use std::sync::Arc;

use etcd_client::proto::{PbTxnOpResponse, PbTxnResponse};
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};

use super::call::{About, Failure, try_within};
use super::keys::{revision, to_etcd, versioned};
use super::{Inner, incomplete};
use crate::error::StoreError;
use crate::rules::{GUARDS_MAX, TRANSACTION_BYTES_MAX};
use crate::settle::{AttemptError, Trace, look};
use crate::store::{LeaseId, Operation, Outcome, Transaction, Versioned};

/// The largest answer: a conflict whose guarded keys all hold as much as a key can. What is committed answers little.
const CONFLICT_BYTES_MAX: usize = (GUARDS_MAX + 1) * TRANSACTION_BYTES_MAX;

impl Inner {
    /// Sends a transaction, as the try with this number.
    ///
    /// A member whose file has just reached its quota carries a transaction out and says that it is full, as if it had not
    /// (`quotaApplierV3` of etcd's `server/etcdserver/apply`); what the guarded keys are then tells which of both it was.
    pub(super) async fn attempt(
        &self,
        transaction: &Transaction,
        tried: u32,
    ) -> Result<Outcome, AttemptError> {
        match self.send(transaction, tried).await {
            Err(AttemptError::Failed(StoreError::Full)) => {}
            ended => return ended,
        }
        // A transaction that writes nothing is taken by a full store too.
        let guards = Transaction { guards: transaction.guards.clone(), operations: Vec::new() };
        match self.send(&guards, tried).await {
            Ok(Outcome::Committed { .. }) => Err(AttemptError::Failed(StoreError::Full)),
            Ok(Outcome::Conflict { revision, current }) => match look(transaction, revision, &current) {
                Trace::Ours(revision) => Ok(Outcome::Committed { revision }),
                Trace::None => Ok(Outcome::Conflict { revision, current }),
                Trace::Covered => Err(AttemptError::Unknown(Arc::new(StoreError::Full))),
            },
            Err(AttemptError::Failed(error)) => Err(AttemptError::Unknown(Arc::new(error))),
            Err(unknown) => Err(unknown),
        }
    }

    async fn send(&self, transaction: &Transaction, tried: u32) -> Result<Outcome, AttemptError> {
        let request = self.encode(transaction);
        let mut kv = self.client.kv_client().max_decoding_message_size(CONFLICT_BYTES_MAX);
        let about = About { lease: first_lease(transaction), ..About::default() };
        let answer = self
            .once(try_within(tried, self.request_timeout), about, async move { kv.txn(request).await })
            .await;
        match answer {
            // An answer that cannot be read leaves open what was done.
            Ok(answer) => {
                decode(transaction, answer.0).map_err(|error| AttemptError::Unknown(Arc::new(error)))
            }
            Err(Failure::Transient(cause) | Failure::Oversized(cause)) => Err(AttemptError::Unknown(cause)),
            Err(Failure::Known(error)) => Err(AttemptError::Failed(error)),
        }
    }

    fn encode(&self, transaction: &Transaction) -> Txn {
        let guards = &transaction.guards;
        let compare =
            |key: &str, at| Compare::mod_revision(self.root.full(key), CompareOp::Equal, to_etcd(at));
        let compares: Vec<Compare> =
            guards.iter().map(|guard| compare(&guard.key, guard.mod_revision)).collect();
        let reads: Vec<TxnOp> =
            guards.iter().map(|guard| TxnOp::get(self.root.full(&guard.key), None)).collect();
        let operations: Vec<TxnOp> =
            transaction.operations.iter().map(|operation| self.operation(operation)).collect();
        Txn::new().when(compares).and_then(operations).or_else(reads)
    }

    fn operation(&self, operation: &Operation) -> TxnOp {
        match operation {
            Operation::Put { key, value, lease } => {
                let options = lease.map(|LeaseId(lease)| PutOptions::new().with_lease(lease));
                TxnOp::put(self.root.full(key), value.to_vec(), options)
            }
            Operation::Delete { key } => TxnOp::delete(self.root.full(key), None),
        }
    }
}

/// etcd does not say which lease it did not find; there is hardly ever more than one.
fn first_lease(transaction: &Transaction) -> Option<LeaseId> {
    transaction.operations.iter().find_map(|operation| match operation {
        Operation::Put { lease, .. } => *lease,
        Operation::Delete { .. } => None,
    })
}

fn decode(transaction: &Transaction, answer: PbTxnResponse) -> Result<Outcome, StoreError> {
    let revision = revision(answer.header.ok_or_else(|| incomplete("header"))?.revision);
    if answer.succeeded {
        return Ok(Outcome::Committed { revision });
    }
    if answer.responses.len() != transaction.guards.len() {
        return Err(incomplete("value for each guard"));
    }
    let guards = transaction.guards.iter().zip(answer.responses);
    let read = |(guard, response): (&crate::Guard, etcd_client::proto::PbResponseOp)| match response.response
    {
        Some(PbTxnOpResponse::ResponseRange(mut range)) => {
            Ok((guard.key.clone(), range.kvs.pop().map(versioned)))
        }
        _ => Err(incomplete("range for a guard")),
    };
    let current: Vec<(String, Option<Versioned>)> = guards.map(read).collect::<Result<_, _>>()?;
    Ok(Outcome::Conflict { revision, current })
}
