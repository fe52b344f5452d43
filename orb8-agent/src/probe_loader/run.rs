//! Running a loaded program by system call (`BPF_PROG_TEST_RUN`), whoever holds its object.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use super::{
    EMPTY_PACKET, LoadError, Object,
    map::{bpf, descriptor},
};

const BPF_PROG_TEST_RUN: libc::c_int = 10;

/// The test-run command's member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// A classifier that is run and not attached.
#[derive(Debug)]
pub struct Runner(OwnedFd);

impl Object {
    /// The classifier `name`, to be run.
    pub fn runner(&mut self, name: &str) -> Result<Runner, LoadError> {
        let failed = |error| LoadError::Program { name: name.into(), error };
        let fd = self.classifier(name)?.fd().map_err(failed)?.as_fd().try_clone_to_owned();
        let io = |error: io::Error| LoadError::MapIo { name: name.into(), error };
        Ok(Runner(fd.map_err(io)?))
    }
}

impl Runner {
    /// Runs it once on an empty packet.
    pub fn run(&self) -> io::Result<()> {
        let mut attr = TestRun {
            prog_fd: descriptor(&self.0),
            data_size_in: u32::try_from(EMPTY_PACKET.len()).unwrap_or_default(),
            data_in: EMPTY_PACKET.as_ptr() as u64,
            repeat: 1,
            ..TestRun::default()
        };
        // SAFETY: the packet is as long as the attribute says, and nothing is written back.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }
    }
}
