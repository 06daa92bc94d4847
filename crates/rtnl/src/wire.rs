//! Pure: netlink attributes as bytes, for the messages that netlink-packet-route has no type for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Type bits of an attribute without its flags (nested, network byte order).
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 4;

/// A message that does not have the shape that its kind has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Splits attributes into type and value.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        // Less than a header is the padding behind the last one.
        let (header, _) = self.0.split_first_chunk::<HEADER>()?;
        let [l0, l1, t0, t1] = *header;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(value) = self.0.get(HEADER..length) else {
            self.0 = &[];
            return Some(Err(Malformed("attribute is longer than its message")));
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Ok((u16::from_ne_bytes([t0, t1]) & TYPE_MASK, value)))
    }
}

/// Appends an attribute.
pub(crate) fn put(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Limpet's attributes are a few hundred bytes at most; the length has 16 bits.
    let length = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

pub(crate) fn u16_of(value: &[u8]) -> Result<u16, Malformed> {
    value.try_into().map(u16::from_ne_bytes).map_err(|_| Malformed("attribute is not of 2 bytes"))
}

pub(crate) fn u32_of(value: &[u8]) -> Result<u32, Malformed> {
    value.try_into().map(u32::from_ne_bytes).map_err(|_| Malformed("attribute is not of 4 bytes"))
}

/// An address by its length: the kernel does not say its family everywhere.
pub(crate) fn address_of(value: &[u8]) -> Result<IpAddr, Malformed> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Ok(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(value)
        .map(|v6| Ipv6Addr::from(v6).into())
        .map_err(|_| Malformed("address is of neither 4 nor 16 bytes"))
}

/// The bytes of an address, in network order.
pub(crate) fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Text that ends at its first zero byte.
pub(crate) fn text_of(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_split_again() {
        let mut message = Vec::new();
        put(&mut message, 1, b"abc");
        put(&mut message, 0x8002, &[]);
        put(&mut message, 3, &7u32.to_ne_bytes());
        let split: Result<Vec<_>, _> = Attributes(&message).collect();
        assert_eq!(split.unwrap(), [(1, &b"abc"[..]), (2, &[]), (3, &7u32.to_ne_bytes())]);
    }

    #[test]
    fn an_attribute_that_overruns_its_message_is_an_error() {
        for bytes in [[200, 0, 1, 0, 9], [3, 0, 1, 0, 9]] {
            let mut split = Attributes(&bytes);
            assert!(split.next().unwrap().is_err());
            assert!(split.next().is_none());
        }
    }
}
