//! Names of system calls: by number on this machine's architecture, and those of the others we know.

use std::{
    collections::{BTreeSet, HashMap},
    sync::LazyLock,
};

use orb8_common::syscall::{COMPAT, NUMBERS, OTHER};
use syscalls::{aarch64, x86_64};

/// Candidates that an error lists.
const CANDIDATES: usize = 5;

/// This machine's architecture, as uname(1) has it.
pub const ARCHITECTURE: &str = std::env::consts::ARCH;

/// Name by number. A number without a name is a call that is newer than this table.
static NAMES: LazyLock<Vec<Box<str>>> = LazyLock::new(|| {
    let name = |number: usize| -> Box<str> {
        match u32::try_from(number) {
            Ok(COMPAT) => "compat".into(),
            Ok(OTHER) => "other".into(),
            _ => match named(ARCHITECTURE, number) {
                Some(name) => name.into(),
                None => format!("syscall-{number}").into(),
            },
        }
    };
    (0..NUMBERS).map(name).collect()
});

static BY_NAME: LazyLock<HashMap<&'static str, u32>> =
    LazyLock::new(|| NAMES.iter().map(|name| &**name).zip(0..).collect());

/// All names of the architectures that orb8 runs on.
static ALL: LazyLock<BTreeSet<&'static str>> = LazyLock::new(|| {
    let of = |architecture| (0..NUMBERS).filter_map(move |number| named(architecture, number));
    of("x86_64").chain(of("aarch64")).chain(["compat", "other"]).collect()
});

/// The name of a number in one architecture's table.
fn named(architecture: &str, number: usize) -> Option<&'static str> {
    match architecture {
        "x86_64" => x86_64::Sysno::new(number).map(|call| call.name()),
        "aarch64" => aarch64::Sysno::new(number).map(|call| match call.name() {
            // The kernel's name, and that of every other tool, is the same as on x86_64.
            "fstatat" => "newfstatat",
            name => name,
        }),
        _ => None,
    }
}

/// What is counted under a number: `compat` are calls of 32-bit programs, `other` are numbers that no
/// table has.
#[must_use]
pub fn name(number: u32) -> &'static str {
    NAMES.get(number as usize).map_or("other", |name| name)
}

/// The number of a call here; None where this architecture has none of that name.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    BY_NAME.get(name).copied()
}

/// A call that exists by that name here or on another architecture; else who may have been meant.
pub fn find(written: &str) -> Result<&'static str, String> {
    let written = written.trim();
    if let Some(name) = ALL.get(written) {
        return Ok(name);
    }
    if let Some(number) = number(written) {
        return Ok(name(number));
    }
    let mut near: Vec<_> =
        ALL.iter().map(|name| (strsim::levenshtein(name, written), *name)).collect();
    near.sort_unstable();
    let near: Vec<_> = near.into_iter().take(CANDIDATES).map(|(_, name)| name).collect();
    Err(format!("{written:?} is not a system call; the nearest are: {}", near.join(", ")))
}

/// All names of the architectures that orb8 runs on, sorted.
pub fn all() -> impl Iterator<Item = &'static str> {
    ALL.iter().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_calls_of_this_machine_have_the_numbers_of_its_c_library() {
        for (call, number_here) in [
            ("read", libc::SYS_read),
            ("execve", libc::SYS_execve),
            ("openat", libc::SYS_openat),
            ("newfstatat", libc::SYS_newfstatat),
            ("clone3", libc::SYS_clone3),
            ("io_uring_setup", libc::SYS_io_uring_setup),
        ] {
            assert_eq!(number(call).map(i64::from), Some(number_here), "{call}");
            assert_eq!(name(u32::try_from(number_here).unwrap()), call);
        }
        assert_eq!((name(COMPAT), name(OTHER), name(u32::MAX)), ("compat", "other", "other"));
        assert!(name(500).starts_with("syscall-"), "{}", name(500));
    }

    #[test]
    fn names_of_both_architectures_are_known_and_every_number_has_one_name() {
        for call in ["fork", "arch_prctl", "renameat", "openat2", "landlock_restrict_self"] {
            assert_eq!(find(call), Ok(call));
        }
        let names: BTreeSet<_> = NAMES.iter().collect();
        assert_eq!(names.len(), NUMBERS);
    }

    #[test]
    fn a_typing_error_is_told_what_was_meant() {
        let error = find("excve").unwrap_err();
        assert!(error.contains("\"excve\"") && error.contains("execve"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_a_name_or_an_error_and_any_number_has_a_name(text: String, n: u32) {
            if let Ok(found) = find(&text) {
                prop_assert_eq!(found, text.trim());
            }
            prop_assert!(!name(n).is_empty());
        }
    }
}
