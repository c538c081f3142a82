//! The words of `lightbyte status` and `lightbyte etcd`.

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = StatusForm::Table)]
    pub(crate) output: StatusForm,
}

/// What is to be shown or done.
#[derive(Debug, Subcommand)]
pub(crate) enum Etcd {
    /// Shows the members: who leads, how full they are, and what to worry about; exit code 2 when there is anything
    Status(Status),
    /// Has members write their files anew, without the pages that are free; one after the other, each answers nobody meanwhile
    Defrag {
        /// Only the member whose clients connect here; all of them when left out
        #[arg(value_name = "URL")]
        endpoint: Option<String>,
    },
}

/// How the cluster's status is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatusForm {
    /// One table
    Table,
    /// What the server said
    Json,
}
