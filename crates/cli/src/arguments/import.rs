//! Words for bringing in images.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use lightbyte_api::Name;

#[derive(Debug, Subcommand)]
pub(crate) enum Import {
    /// Checks an image, sends its files to the cluster and registers the version
    #[command(
        after_help = "Examples:\n  lightbyte import image ~/.cache/lightbyte/images/debian\n  lightbyte import image web --from web.qcow2 --no-current\n  docker save nginx -o nginx.tar && lightbyte import image nginx --from nginx.tar"
    )]
    Image(ImportImage),
    /// Seals a certificate's private key and stores both, for load balancers that speak TLS; or puts them in the place of older ones
    #[command(
        after_help = "Examples:\n  lightbyte import certificate shop --chain fullchain.pem --key privkey.pem\n  lightbyte get secrets"
    )]
    Certificate(ImportCertificate),
}

#[derive(Debug, Args)]
pub(crate) struct ImportCertificate {
    /// What the secret is called: load balancers name it so
    pub(crate) name: Name,
    /// The certificates as PEM, the server's own first
    #[arg(long, value_name = "FILE")]
    pub(crate) chain: PathBuf,
    /// Its private key as PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ImportImage {
    /// The image's directory, which holds manifest.json; with --from, what the image will be called
    #[arg(value_name = "DIR|NAME")]
    pub(crate) image: PathBuf,
    /// Makes the image from a disk (raw or qcow2) with a Linux on it, or from a container's image (a directory or tar file in
    /// OCI's layout, or what `docker save` writes)
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) from: Option<PathBuf>,
    /// An image of lightbyte's, which has the guest's agent, and the kernel for containers' images; the demo image that
    /// `cargo xtask images` made when left out
    #[arg(long, value_name = "DIR", requires = "from")]
    pub(crate) base: Option<PathBuf>,
    /// Registers the version, and lets new VMs have the one that they have now
    #[arg(long)]
    pub(crate) no_current: bool,
}
