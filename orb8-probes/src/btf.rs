//! Where the running kernel keeps the members of its structures, by its own type information.
//!
//! rustc emits no CO-RE relocations, so a probe that reads kernel structures gets their offsets as
//! globals. Source: Documentation/bpf/btf.rst of the kernel.

use std::{collections::HashMap, fs, io};

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// `kind` of `struct btf_type`.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Nesting of anonymous structures and of typedefs beyond which type information is not believed.
const DEPTH: usize = 16;

/// A global of a probe, and the member of a kernel structure whose offset it holds.
pub type Member = (&'static str, (&'static str, &'static str));

/// What the running kernel says of these members: each global with its value.
pub fn offsets(members: &[Member]) -> io::Result<Vec<(&'static str, u32)>> {
    let btf = Btf::of_kernel()?;
    let offset = |&(global, (structure, member)): &Member| {
        let offset = btf.offset(structure, member).ok_or_else(|| {
            io::Error::other(format!("{VMLINUX}: no member {member} in struct {structure}"))
        })?;
        Ok((global, offset))
    };
    members.iter().map(offset).collect()
}

/// The kernel's types.
struct Btf {
    raw: Vec<u8>,
    strings: usize,
    /// Where each type's record begins, by id.
    types: Vec<usize>,
    structs: HashMap<String, usize>,
}

impl Btf {
    /// The types of the running kernel.
    fn of_kernel() -> io::Result<Self> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{VMLINUX}: {e}"));
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("{VMLINUX}: not BTF"));
        Self::parse(fs::read(VMLINUX).map_err(named)?).ok_or_else(invalid)
    }

    fn parse(raw: Vec<u8>) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        if u16::from_le_bytes(raw.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let word = |at: usize| u32_at(&raw, at).map(|n| n as usize);
        let header = word(4)?;
        let first = header.checked_add(word(8)?)?;
        let end = first.checked_add(word(12)?)?;
        let strings = header.checked_add(word(16)?)?;
        // Id 0 is void.
        let mut types = vec![usize::MAX];
        let mut at = first;
        while at < end {
            types.push(at);
            let info = u32_at(&raw, at + 4)?;
            let members = (info & 0xffff) as usize;
            at += 12
                + match info >> 24 & 0x1f {
                    kind::INT | kind::VAR | kind::DECL_TAG => 4,
                    kind::ARRAY => 12,
                    kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * members,
                    kind::ENUM | kind::FUNC_PROTO => 8 * members,
                    _ => 0,
                };
        }
        let mut btf = Self { raw, strings, types, structs: HashMap::new() };
        for at in btf.types.iter().skip(1).copied() {
            if btf.kind(at)? == kind::STRUCT {
                let name = btf.text(u32_at(&btf.raw, at)?)?.to_owned();
                btf.structs.entry(name).or_insert(at);
            }
        }
        Some(btf)
    }

    /// The offset of a member of a structure in bytes, those of anonymous members included.
    fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        self.bits(*self.structs.get(structure)?, member, DEPTH).map(|bits| bits / 8)
    }

    fn bits(&self, at: usize, member: &str, depth: usize) -> Option<u32> {
        let at = self.resolve(at)?;
        let info = u32_at(&self.raw, at + 4)?;
        if depth == 0 || !matches!(info >> 24 & 0x1f, kind::STRUCT | kind::UNION) {
            return None;
        }
        (0..(info & 0xffff) as usize).find_map(|n| {
            let record = at + 12 + 12 * n;
            let name = self.text(u32_at(&self.raw, record)?)?;
            let offset = u32_at(&self.raw, record + 8)?;
            // With the flag set the upper byte is the size of a bit field.
            let offset = if info >> 31 == 1 { offset & 0x00ff_ffff } else { offset };
            if name == member {
                return Some(offset);
            }
            if !name.is_empty() {
                return None;
            }
            let inner = *self.types.get(u32_at(&self.raw, record + 4)? as usize)?;
            self.bits(inner, member, depth - 1)?.checked_add(offset)
        })
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, mut at: usize) -> Option<usize> {
        for _ in 0..DEPTH {
            match self.kind(at)? {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    at = *self.types.get(u32_at(&self.raw, at + 8)? as usize)?;
                }
                _ => return Some(at),
            }
        }
        None
    }

    fn kind(&self, at: usize) -> Option<u32> {
        u32_at(&self.raw, at.checked_add(4)?).map(|info| info >> 24 & 0x1f)
    }

    fn text(&self, offset: u32) -> Option<&str> {
        let bytes = self.raw.get(self.strings.checked_add(offset as usize)?..)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        str::from_utf8(&bytes[..end]).ok()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_running_kernels_structures_are_found() {
        let btf = Btf::of_kernel().unwrap();
        for members in [&crate::CGROUP_MEMBERS[..], crate::SYSCALL_MEMBERS] {
            assert_eq!(offsets(members).unwrap().len(), members.len());
        }
        // The first member of struct list_head, and the second, which is one pointer later.
        assert_eq!(btf.offset("list_head", "next"), Some(0));
        assert_eq!(btf.offset("list_head", "prev"), Some(8));
        // In an anonymous union of an anonymous struct, since there is a struct page.
        assert!(btf.offset("page", "mapping").is_some_and(|offset| offset > 0));
        assert_eq!(btf.offset("list_head", "nothing"), None);
        assert_eq!(btf.offset("no such struct", "next"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_or_answer_nothing(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assume!(bytes.len() > 24);
            bytes[..8].copy_from_slice(&[0x9f, 0xeb, 1, 0, 24, 0, 0, 0]);
            // Offsets that have a chance to lie within.
            for at in [10, 11, 14, 15, 18, 19] {
                bytes[at] = 0;
            }
            if let Some(btf) = Btf::parse(bytes) {
                for name in btf.structs.keys() {
                    let _ = btf.offset(name, "x");
                }
            }
        }
    }
}
