//! What each verb does: a file for each.

pub(crate) mod apply;
pub(crate) mod console;
pub(crate) mod cp;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod disks;
pub(crate) mod doctor;
pub(crate) mod edit;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod explain;
pub(crate) mod forward;
pub(crate) mod get;
pub(crate) mod import;
pub(crate) mod logs;
pub(crate) mod maintenance;
pub(crate) mod power;
pub(crate) mod release;
pub(crate) mod rollout;
pub(crate) mod run;
pub(crate) mod scale;
pub(crate) mod ssh;
pub(crate) mod status;
pub(crate) mod stuck;
pub(crate) mod wait;
pub(crate) mod why;
