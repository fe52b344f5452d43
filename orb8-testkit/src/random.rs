//! Random identities: pod UIDs, container ids, interface names.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};

/// `N` random bytes in lower-case hexadecimal, twice as many characters.
pub(crate) fn hex<const N: usize>() -> Result<String> {
    Ok(bytes::<N>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A random (version 4) UUID, as the API server gives to a pod.
pub(crate) fn uuid() -> Result<String> {
    let mut raw = bytes::<16>()?;
    raw[6] = (raw[6] & 0x0f) | 0x40;
    raw[8] = (raw[8] & 0x3f) | 0x80;
    let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut raw = [0; N];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut raw))
        .context("cannot read /dev/urandom")?;
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_says_version_four_and_is_never_the_same_twice() {
        let (one, two) = (uuid().unwrap(), uuid().unwrap());
        assert_ne!(one, two);
        let lengths: Vec<usize> = one.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{one}");
        assert_eq!(one.as_bytes()[14], b'4', "{one}");
        assert!(matches!(one.as_bytes()[19], b'8' | b'9' | b'a' | b'b'), "{one}");
    }
}
