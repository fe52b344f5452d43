//! Attaching programs to a cgroup, where they see every packet of the sockets in and below it. The
//! links end with the process.

use std::{fs::File, path::Path};

use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, TestRun as _, TestRunOptions,
    cgroup_skb::CgroupSkbLink,
};

use super::{EMPTY_PACKET, Hook, LoadError, Object};

/// Programs at a cgroup; dropping it detaches them.
#[derive(Debug)]
pub struct CgroupAttachment {
    _links: [CgroupSkbLink; 2],
}

impl Object {
    /// Loads the programs and attaches them to the cgroup of directory `dir`: at what its sockets
    /// receive and at what they send. Whoever else has programs there keeps them.
    pub fn attach_to_cgroup(
        &mut self,
        [ingress, egress]: [&str; 2],
        dir: &Path,
    ) -> Result<CgroupAttachment, LoadError> {
        let cgroup =
            File::open(dir).map_err(|error| LoadError::Cgroup { dir: dir.into(), error })?;
        // Both are loaded before one is attached: half of the traffic is worse than none.
        self.at_cgroup(ingress)?;
        self.at_cgroup(egress)?;
        Ok(CgroupAttachment {
            _links: [
                self.link_to(&cgroup, ingress, Hook::Ingress)?,
                self.link_to(&cgroup, egress, Hook::Egress)?,
            ],
        })
    }

    /// Runs the program `name` once on an empty packet of a socket of the calling thread
    /// (`BPF_PROG_TEST_RUN`).
    pub fn run_at_socket(&mut self, name: &str) -> Result<(), LoadError> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(&EMPTY_PACKET);
        let run = self.at_cgroup(name)?.test_run(options);
        run.map(drop).map_err(|error| LoadError::Program { name: name.into(), error })
    }

    fn link_to(
        &mut self,
        cgroup: &File,
        name: &str,
        hook: Hook,
    ) -> Result<CgroupSkbLink, LoadError> {
        let attach_type = match hook {
            Hook::Ingress => CgroupSkbAttachType::Ingress,
            Hook::Egress => CgroupSkbAttachType::Egress,
        };
        let program = self.at_cgroup(name)?;
        // A link lets others attach too, whatever the mode; the kernel takes no other mode with it.
        let link = program
            .attach(cgroup, attach_type, CgroupAttachMode::Single)
            .and_then(|id| program.take_link(id));
        link.map_err(|error| LoadError::Program { name: name.into(), error })
    }

    /// The program `name`, loaded into the kernel at the first call.
    fn at_cgroup(&mut self, name: &str) -> Result<&mut CgroupSkb, LoadError> {
        let program = self.ebpf.program_mut(name);
        let program = program.ok_or_else(|| LoadError::Absent(format!("program {name}")))?;
        let failed = |error| LoadError::Program { name: name.into(), error };
        let program: &mut CgroupSkb = program.try_into().map_err(failed)?;
        if program.fd().is_err() {
            program.load().map_err(failed)?;
        }
        Ok(program)
    }
}
