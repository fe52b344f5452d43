//! Pod UIDs and container ids, as small values that cannot be malformed.

use std::{fmt, str::FromStr};

/// The UID of a pod as the kubelet uses it in cgroup names.
///
/// A UUID for every pod that the API server made. Static pods carry the 32-digit hash of their
/// manifest instead; their mirror in the API server has another UID and repeats the hash in an
/// annotation (see [`Pod::config_hash`](super::Pod::config_hash)).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid {
    value: u128,
    dashed: bool,
}

/// Where a UUID has its four dashes.
const DASHES: [usize; 4] = [8, 13, 18, 23];

impl PodUid {
    /// Parses a UID whose UUID form is separated by `separator`: `-` in cgroupfs names and in the
    /// API, `_` in systemd unit names.
    #[must_use]
    pub fn parse_separated(text: &str, separator: u8) -> Option<Self> {
        let bytes = text.as_bytes();
        let dashed = match bytes.len() {
            32 => false,
            36 => true,
            _ => return None,
        };
        let mut value = 0u128;
        for (at, &byte) in bytes.iter().enumerate() {
            if dashed && DASHES.contains(&at) {
                if byte != separator {
                    return None;
                }
                continue;
            }
            value = value << 4 | u128::from(hex_digit(byte)?);
        }
        Some(Self { value, dashed })
    }

    /// Its 16 bytes, in the order of the text.
    #[must_use]
    pub const fn bytes(&self) -> [u8; 16] {
        self.value.to_be_bytes()
    }

    /// What stands for a UID where a container is in no pod: the first half of its id.
    #[must_use]
    pub fn of_container(id: &ContainerId) -> Self {
        let value = id.0[..16].iter().fold(0, |value, byte| value << 8 | u128::from(*byte));
        Self { value, dashed: false }
    }
}

impl FromStr for PodUid {
    type Err = InvalidPodUid;

    fn from_str(text: &str) -> Result<Self, InvalidPodUid> {
        Self::parse_separated(text, b'-').ok_or_else(|| InvalidPodUid(text.to_owned()))
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.value);
        if self.dashed {
            let (a, rest) = hex.split_at(8);
            let (b, rest) = rest.split_at(4);
            let (c, rest) = rest.split_at(4);
            let (d, e) = rest.split_at(4);
            write!(f, "{a}-{b}-{c}-{d}-{e}")
        } else {
            f.write_str(&hex)
        }
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PodUid({self})")
    }
}

/// A text that is not a pod UID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a pod UID: expected a UUID such as 8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a, or the \
     32 hexadecimal digits of a static pod"
)]
pub struct InvalidPodUid(String);

/// The id that a container runtime gives a container: 256 bits, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId([u8; 32]);

impl ContainerId {
    /// The first 12 digits, as container tools print ids.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl FromStr for ContainerId {
    type Err = InvalidContainerId;

    fn from_str(text: &str) -> Result<Self, InvalidContainerId> {
        let invalid = || InvalidContainerId(text.to_owned());
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(invalid()) };
        if pairs.len() != 32 {
            return Err(invalid());
        }
        let mut id = [0; 32];
        for (byte, &[high, low]) in id.iter_mut().zip(pairs) {
            let digits = hex_digit(high).zip(hex_digit(low));
            let (high, low) = digits.ok_or_else(invalid)?;
            *byte = high << 4 | low;
        }
        Ok(Self(id))
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContainerId({self})")
    }
}

/// A text that is not a container id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a container id: expected 64 hexadecimal digits")]
pub struct InvalidContainerId(String);

/// Lower-case digits only: that is how every runtime and the kubelet write them.
fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pod_uid_is_a_uuid_or_a_config_hash() {
        for good in ["8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a", "0f5d7cbb6ed9ea8e6ba0f1d9d2c8d1ff"] {
            assert_eq!(good.parse::<PodUid>().unwrap().to_string(), good);
        }
        for bad in ["", "pod-1", "8d5f24b5_3f56_4f60_a7a8_0c2f8b5e6f3a", "8D5F24B5-3F56"] {
            assert!(bad.parse::<PodUid>().unwrap_err().to_string().contains("expected a UUID"));
        }
    }

    #[test]
    fn a_uuid_and_the_same_digits_without_dashes_are_two_uids() {
        let uuid: PodUid = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a".parse().unwrap();
        let hash: PodUid = "8d5f24b53f564f60a7a80c2f8b5e6f3a".parse().unwrap();
        assert_ne!(uuid, hash);
    }

    #[test]
    fn a_container_in_no_pod_has_half_of_its_id_for_a_uid() {
        let id: ContainerId = "0123456789abcdef".repeat(4).parse().unwrap();
        assert_eq!(PodUid::of_container(&id).to_string(), "0123456789abcdef".repeat(2));
    }

    #[test]
    fn a_container_id_has_a_short_form_of_twelve_digits() {
        let id: ContainerId = "0123456789abcdef".repeat(4).parse().unwrap();
        assert_eq!(id.short(), "0123456789ab");
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics_and_what_parses_prints_the_same(text in ".{0,70}") {
            if let Ok(uid) = text.parse::<PodUid>() {
                prop_assert_eq!(uid.to_string(), text.clone());
            }
            if let Ok(id) = text.parse::<ContainerId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn container_ids_round_trip(text in "[0-9a-f]{64}") {
            prop_assert_eq!(text.parse::<ContainerId>().unwrap().to_string(), text);
        }
    }
}
