//! The kernel modules that a tiny guest loads, in the order in which they need each other: a freshly unpacked package has
//! no `modules.dep`, and a fixed list loads quicker than one that is looked up.

/// Paths below `kernel/` of the module tree. Virtio on the MMIO bus with a disk, a network interface and vsock; ext4 is
/// built into Debian's cloud kernel.
pub const MODULES: &[&str] = &[
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_mmio.ko",
    "drivers/block/virtio_blk.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "net/vmw_vsock/vsock.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
];

/// What the kernel's build puts at the end of a signed module.
const SIGNATURE_MARK: &[u8] = b"~Module signature appended~\n";

/// Bytes of `struct module_signature`, whose last word is the signature's length.
const SIGNATURE_HEAD_BYTES: usize = 12;

/// A module without its signature. Checking one costs an emulated CPU about 10 ms, and the initramfs is covered by the
/// image's own checksum; a kernel that enforces signatures would need them kept.
pub fn without_signature(module: &[u8]) -> &[u8] {
    let Some(rest) = module.strip_suffix(SIGNATURE_MARK) else { return module };
    let Some((rest, head)) = rest.split_last_chunk::<SIGNATURE_HEAD_BYTES>() else { return module };
    let length = u32::from_be_bytes([head[8], head[9], head[10], head[11]]) as usize;
    rest.len().checked_sub(length).and_then(|end| rest.get(..end)).unwrap_or(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_cut_and_anything_else_is_kept() {
        let mut signed = b"module".to_vec();
        signed.extend_from_slice(b"sig");
        signed.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        signed.extend_from_slice(SIGNATURE_MARK);
        assert_eq!(without_signature(&signed), b"module");
        assert_eq!(without_signature(b"module"), b"module");
        assert_eq!(without_signature(SIGNATURE_MARK), SIGNATURE_MARK);
        let mut lie = signed.clone();
        let at = lie.len() - SIGNATURE_MARK.len() - 1;
        lie[at] = 200;
        assert_eq!(without_signature(&lie), lie);
    }
}
