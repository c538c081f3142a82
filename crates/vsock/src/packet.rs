//! The 44-byte header of a virtio-vsock packet and the words it may hold.
//!
//! Source: virtio 1.2, section 5.10.6 ("Device Operation"). All integers are little-endian. Nothing here trusts the guest:
//! decoding never fails, and what a field means is judged by [`crate::machine`].

/// Bytes of a packet's header on the wire.
pub const HEADER_BYTES: usize = 44;

/// The host's well-known address (virtio 1.2, 5.10.4; `VMADDR_CID_HOST`).
pub const HOST_CID: u64 = 2;

/// Largest payload that is accepted in one packet: what Linux sends at most (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// The only socket type that is offered; seqpacket needs a feature bit that this device does not offer.
pub const TYPE_STREAM: u16 = 1;

/// `flags` of a SHUTDOWN packet: its sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;

/// `flags` of a SHUTDOWN packet: its sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;

/// Both directions.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet asks for (virtio 1.2, 5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Asks for a connection.
    Request,
    /// Accepts a connection.
    Response,
    /// Ends a connection at once, or refuses one.
    Reset,
    /// Says which directions its sender has finished with.
    Shutdown,
    /// Carries payload.
    ReadWrite,
    /// Tells the free space of its sender.
    CreditUpdate,
    /// Asks for a [`Operation::CreditUpdate`].
    CreditRequest,
}

impl Operation {
    /// The operation of a code, or nothing where the code means none.
    pub fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }

    /// The code on the wire.
    pub fn code(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::ReadWrite => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// A packet's header, as sent or as a guest claims it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Address of the sender.
    pub source_cid: u64,
    /// Address of the receiver.
    pub destination_cid: u64,
    /// Port of the sender.
    pub source_port: u32,
    /// Port of the receiver.
    pub destination_port: u32,
    /// Bytes of payload after the header.
    pub length: u32,
    /// Socket type; see [`TYPE_STREAM`].
    pub kind: u16,
    /// See [`Operation`].
    pub operation: u16,
    /// Used by SHUTDOWN only.
    pub flags: u32,
    /// Bytes of receive buffer that the sender has for this connection.
    pub buffer_bytes: u32,
    /// Bytes that the sender has taken out of that buffer since the connection began, modulo 2^32.
    pub forwarded_bytes: u32,
}

impl Header {
    /// Reads a header; any bytes give one.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        Self {
            source_cid: u64::from_le_bytes(field(bytes, 0)),
            destination_cid: u64::from_le_bytes(field(bytes, 8)),
            source_port: u32::from_le_bytes(field(bytes, 16)),
            destination_port: u32::from_le_bytes(field(bytes, 20)),
            length: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            operation: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buffer_bytes: u32::from_le_bytes(field(bytes, 36)),
            forwarded_bytes: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    /// Writes a header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.source_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.destination_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.source_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.destination_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.operation.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buffer_bytes.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.forwarded_bytes.to_le_bytes());
        bytes
    }
}

/// The `N` bytes at `offset`; callers pass constants that lie inside the header.
fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[offset..offset + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire_and_fields_stand_where_the_specification_puts_them() {
        let header = Header {
            source_cid: 3,
            destination_cid: HOST_CID,
            source_port: 0x0102_0304,
            destination_port: 1025,
            length: 7,
            kind: TYPE_STREAM,
            operation: Operation::ReadWrite.code(),
            flags: SHUTDOWN_BOTH,
            buffer_bytes: 0xffff_ffff,
            forwarded_bytes: 9,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), header);
        assert_eq!(bytes[16..20], [4, 3, 2, 1]);
        assert_eq!(bytes[28..32], [1, 0, 5, 0]);
    }

    #[test]
    fn every_code_has_one_operation_or_none() {
        for code in 0..=u16::MAX {
            assert_eq!(Operation::from_code(code).map_or(code, Operation::code), code);
        }
        assert_eq!(Operation::from_code(0), None);
        assert_eq!(Operation::from_code(8), None);
    }
}
