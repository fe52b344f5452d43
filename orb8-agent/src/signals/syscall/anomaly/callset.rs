//! A set of system calls, in 64 bytes.

use orb8_common::syscall::NUMBERS;
use serde::{Deserialize, Serialize};

/// Numbers below [`NUMBERS`]; others are never in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<u16>", from = "Vec<u16>")]
pub(super) struct CallSet([u64; NUMBERS / 64]);

impl CallSet {
    /// True when it was not in it.
    pub(super) fn insert(&mut self, number: u16) -> bool {
        let Some(word) = self.0.get_mut(usize::from(number / 64)) else { return false };
        let bit = 1 << (number % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    pub(super) fn contains(&self, number: u16) -> bool {
        self.0.get(usize::from(number / 64)).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    pub(super) fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub(super) fn or(&self, other: &Self) -> Self {
        let mut both = *self;
        both.0.iter_mut().zip(other.0).for_each(|(word, more)| *word |= more);
        both
    }
}

impl From<CallSet> for Vec<u16> {
    fn from(set: CallSet) -> Self {
        (0..=u16::MAX).take(NUMBERS).filter(|number| set.contains(*number)).collect()
    }
}

impl From<Vec<u16>> for CallSet {
    fn from(numbers: Vec<u16>) -> Self {
        let mut set = Self::default();
        for number in numbers {
            set.insert(number);
        }
        set
    }
}
