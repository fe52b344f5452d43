//! Reading and writing maps by `bpf(2)`, in batches where the library has no call for it.
//!
//! Source: include/uapi/linux/bpf.h. `BPF_MAP_LOOKUP_BATCH` reads an entry in a tenth of the time of
//! a look-up of its own.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
};

use orb8_common::Record;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// What kernels answer to a command that a type of map does not have. Not in errno(3).
const ENOTSUPP: i32 = 524;

/// Entries per batch. Smaller than a hash bucket's chain makes the kernel answer ENOSPC, and the
/// batch grows.
const BATCH: usize = 4096;

/// The element commands' member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The batch commands' member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// What a map holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// Capacity.
    pub max_entries: u32,
}

/// A map by its descriptor.
#[derive(Debug)]
pub struct RawMap {
    name: String,
    fd: OwnedFd,
    shape: Shape,
    cpus: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl RawMap {
    pub(super) fn new(name: &str, fd: OwnedFd, shape: Shape) -> io::Result<Self> {
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, e)| io::Error::new(e.kind(), format!("{path}: {e}")))?;
        Ok(Self { name: name.into(), fd, shape, cpus, keys: Vec::new(), values: Vec::new() })
    }

    /// Its name in the object.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Capacity.
    #[must_use]
    pub const fn max_entries(&self) -> u32 {
        self.shape.max_entries
    }

    /// Kernel memory that the map is charged for, in bytes; 0 where the kernel does not say.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()));
        let line = info.unwrap_or_default();
        let memlock = line.lines().find_map(|l| l.strip_prefix("memlock:"));
        memlock.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    }

    /// The value of `key`.
    pub fn get<K: Record, V: Record>(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::new_zeroed();
        found(self.element(BPF_MAP_LOOKUP_ELEM, key.as_bytes(), value.as_mut_bytes(), 0))
            .map(|found| found.then_some(value))
    }

    /// The value of `key` on every possible CPU.
    pub fn get_per_cpu<V: Record>(&self, key: u32) -> io::Result<Vec<V>> {
        // The kernel pads each CPU's value to 8 bytes.
        let stride = size_of::<V>().next_multiple_of(8);
        let mut values = vec![0; stride * self.cpus];
        self.element(BPF_MAP_LOOKUP_ELEM, &key.to_ne_bytes(), &mut values, 0)?;
        Ok(values.chunks_exact(stride).filter_map(V::decode).collect())
    }

    /// Calls `visit` with the value of `key` on every possible CPU, without a copy of each.
    pub fn each_per_cpu<V: Record>(
        &mut self,
        key: u32,
        mut visit: impl FnMut(&V),
    ) -> io::Result<()> {
        let stride = size_of::<V>().next_multiple_of(8);
        let mut values = std::mem::take(&mut self.values);
        values.resize(stride * self.cpus, 0);
        let answer = self.element(BPF_MAP_LOOKUP_ELEM, &key.to_ne_bytes(), &mut values, 0);
        if answer.is_ok() {
            for value in values.chunks_exact(stride) {
                match V::ref_from_prefix(value) {
                    Ok((value, _)) => visit(value),
                    // The buffer need not be aligned for it, though it is.
                    Err(_) => V::decode(value).iter().for_each(&mut visit),
                }
            }
        }
        self.values = values;
        answer
    }

    /// Sets the value of `key`.
    pub fn set<K: Record, V: Record>(&self, key: &K, value: &V) -> io::Result<()> {
        let mut value = *value;
        self.element(BPF_MAP_UPDATE_ELEM, key.as_bytes(), value.as_mut_bytes(), 0)
    }

    /// Removes `key` and gives its last value. From Linux 5.14 on this is one step; below, a packet
    /// that comes between the two is counted nowhere, so only idle entries are removed.
    pub fn take<K: Record, V: Record>(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::new_zeroed();
        let taken = found(self.element(
            BPF_MAP_LOOKUP_AND_DELETE_ELEM,
            key.as_bytes(),
            value.as_mut_bytes(),
            0,
        ));
        match taken {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | ENOTSUPP)) => {}
            other => return other.map(|found| found.then_some(value)),
        }
        let value = self.get(key)?;
        self.remove(key)?;
        Ok(value)
    }

    /// Removes `key`, if it is there.
    pub fn remove<K: Record>(&self, key: &K) -> io::Result<()> {
        found(self.element(BPF_MAP_DELETE_ELEM, key.as_bytes(), &mut [], 0)).map(drop)
    }

    /// Calls `visit` with every entry. Entries that come or go meanwhile may be missed, none is
    /// seen twice.
    pub fn for_each<K: Record, V: Record>(
        &mut self,
        mut visit: impl FnMut(K, V),
    ) -> io::Result<()> {
        let (key_size, value_size) = (self.shape.key_size, self.shape.value_size);
        if (key_size, value_size) != (size_of::<K>(), size_of::<V>()) {
            return Err(io::Error::other("key or value size differs from the agent's"));
        }
        let mut capacity = BATCH;
        let mut position = 0_u32;
        let mut begun = false;
        loop {
            self.keys.resize(capacity * key_size, 0);
            self.values.resize(capacity * value_size, 0);
            let (answer, count, next) = self.batch(begun.then_some(position), capacity);
            match answer {
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
                    capacity *= 2;
                    continue;
                }
                Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
                _ => {}
            }
            let keys = self.keys.chunks_exact(key_size).filter_map(K::decode);
            let values = self.values.chunks_exact(value_size).filter_map(V::decode);
            keys.zip(values).take(count).for_each(|(key, value)| visit(key, value));
            if answer.is_err() {
                return Ok(()); // ENOENT: this was the last batch
            }
            (position, begun) = (next, true);
        }
    }

    /// Entries in use. Walks the map.
    pub fn count<K: Record, V: Record>(&mut self) -> io::Result<u64> {
        let mut entries = 0;
        self.for_each::<K, V>(|_, _| entries += 1)?;
        Ok(entries)
    }

    fn batch(&mut self, from: Option<u32>, capacity: usize) -> (io::Result<()>, usize, u32) {
        let (from_value, mut next) = (from.unwrap_or(0), 0_u32);
        let mut attr = Batch {
            in_batch: from.map_or(0, |_| (&raw const from_value) as u64),
            out_batch: (&raw mut next) as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: u32::try_from(capacity).unwrap_or(u32::MAX),
            map_fd: descriptor(&self.fd),
            ..Batch::default()
        };
        // SAFETY: `keys` and `values` hold `capacity` entries of the map's own sizes (checked by
        // the caller), and the positions are the u32 that hash maps use.
        let answer = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
        (answer, attr.count as usize, next)
    }

    fn element(
        &self,
        command: libc::c_int,
        key: &[u8],
        value: &mut [u8],
        flags: u64,
    ) -> io::Result<()> {
        let wants_value = command != BPF_MAP_DELETE_ELEM;
        let per_cpu = self.shape.value_size.next_multiple_of(8) * self.cpus;
        if key.len() != self.shape.key_size
            || wants_value && value.len() != self.shape.value_size && value.len() < per_cpu
        {
            return Err(io::Error::other("key or value size differs from the agent's"));
        }
        let mut attr = Element {
            map_fd: descriptor(&self.fd),
            key: key.as_ptr() as u64,
            // The kernel refuses a delete that comes with a value, and an empty slice has an address.
            value: if wants_value { value.as_mut_ptr() as u64 } else { 0 },
            flags,
            ..Element::default()
        };
        // SAFETY: `key` and `value` are as long as the map's keys and values, by the check above.
        unsafe { bpf(command, &mut attr) }
    }
}

pub(super) fn descriptor(fd: &OwnedFd) -> u32 {
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

/// ENOENT is an answer, not a failure.
fn found(answer: io::Result<()>) -> io::Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// # Safety
/// Pointers in `attr` are valid for what `command` reads and writes through them.
pub(super) unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<()> {
    // SAFETY: the size is that of `attr`; the caller vouches for the pointers in it.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
