//! Makes the type names in an object's `.BTF` section valid for the kernel.
//!
//! The kernel takes C identifiers and answers EINVAL to anything else; rustc writes names such as
//! `HashMap<FlowKey4, FlowStats>`. Format: Documentation/bpf/btf.rst of the kernel.

const INT: usize = 1;
const ARRAY: usize = 3;
const STRUCT: usize = 4;
const UNION: usize = 5;
const ENUM: usize = 6;
const FUNC_PROTO: usize = 13;
const VAR: usize = 14;
const DATASEC: usize = 15;
const DECL_TAG: usize = 17;
const ENUM64: usize = 19;

/// Replaces, in place, every character that the kernel would refuse. `None` if `elf` has no
/// readable `.BTF` section.
pub(crate) fn sanitize(elf: &mut [u8]) -> Option<()> {
    let btf = section(elf, b".BTF\0")?;
    let header = btf + int::<4>(elf, btf + 4)?;
    let mut at = header + int::<4>(elf, btf + 8)?;
    let end = at + int::<4>(elf, btf + 12)?;
    let strings = header + int::<4>(elf, btf + 16)?;
    let mut names = Vec::new();
    while at < end {
        let info = int::<4>(elf, at + 4)?;
        let (kind, count) = (info >> 24 & 0x1f, info & 0xffff);
        names.push(int::<4>(elf, at)?);
        // Parameter names may be anything; members and enumerators may not.
        let (trailer, named) = match kind {
            STRUCT | UNION | ENUM64 => (12 * count, Some(12)),
            ENUM => (8 * count, Some(8)),
            FUNC_PROTO => (8 * count, None),
            DATASEC => (12 * count, None),
            ARRAY => (12, None),
            INT | VAR | DECL_TAG => (4, None),
            _ => (0, None),
        };
        if let Some(size) = named {
            for i in 0..count {
                names.push(int::<4>(elf, at + 12 + i * size)?);
            }
        }
        at += 12 + trailer;
    }
    for name in names {
        for byte in elf.get_mut(strings + name..)?.iter_mut().take_while(|b| **b != 0) {
            if !byte.is_ascii_alphanumeric() && *byte != b'_' && *byte != b'.' {
                *byte = b'_';
            }
        }
    }
    Some(())
}

/// File offset of the section called `name` in a little-endian ELF64.
fn section(elf: &[u8], name: &[u8]) -> Option<usize> {
    let (table, size) = (int::<8>(elf, 0x28)?, int::<2>(elf, 0x3a)?);
    let (count, names) = (int::<2>(elf, 0x3c)?, int::<2>(elf, 0x3e)?);
    let names = int::<8>(elf, table + names * size + 24)?;
    (0..count).map(|i| table + i * size).find_map(|header| {
        let found = elf.get(names + int::<4>(elf, header)?..)?.starts_with(name);
        found.then(|| int::<8>(elf, header + 24)).flatten()
    })
}

fn int<const N: usize>(bytes: &[u8], at: usize) -> Option<usize> {
    Some(bytes.get(at..at + N)?.iter().rev().fold(0, |value, b| value << 8 | usize::from(*b)))
}
