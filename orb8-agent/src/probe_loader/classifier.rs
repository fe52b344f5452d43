//! Attaching classifiers to interfaces: by TCX link, which ends with the process, or as a filter on
//! a clsact qdisc, which does not and is therefore removed on every path and looked for at start.

use std::io;

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, qdisc_add_clsact},
};

use super::{LoadError, Object};
use crate::config::TcAttach;

/// A hook of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What arrives at the interface.
    Ingress,
    /// What leaves by the interface.
    Egress,
}

/// How a classifier came to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By a TCX link.
    Tcx,
    /// As a filter on a clsact qdisc.
    Clsact {
        /// The qdisc was not there before.
        qdisc_is_ours: bool,
    },
}

impl How {
    /// As on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact { .. } => "clsact",
        }
    }
}

/// An attached classifier; dropping it detaches.
#[derive(Debug)]
pub struct Attachment {
    /// How it is attached.
    pub how: How,
    _link: SchedClassifierLink,
}

impl Attachment {
    /// Whether a clsact qdisc was made for it.
    #[must_use]
    pub fn made_the_qdisc(&self) -> bool {
        self.how == How::Clsact { qdisc_is_ours: true }
    }
}

/// First on clsact: what another filter drops has arrived all the same, and was counted.
const FIRST: u16 = 1;
/// Last: what another filter drops does not leave, and is not counted.
const LAST: u16 = u16::MAX;

impl Object {
    /// Attaches the classifier `name` to `interface`: first at ingress and last at egress, which is
    /// where the kernel's own interface counters sit.
    pub fn attach(
        &mut self,
        name: &str,
        interface: &str,
        hook: Hook,
        wanted: TcAttach,
    ) -> Result<Attachment, LoadError> {
        let classifier = self.classifier(name)?;
        let attached = match wanted {
            TcAttach::Tcx => tcx(classifier, interface, hook),
            TcAttach::Clsact => clsact(classifier, interface, hook),
            TcAttach::Auto => match tcx(classifier, interface, hook) {
                Err(e) if has_no_tcx(&e) => clsact(classifier, interface, hook),
                other => other,
            },
        };
        attached.map_err(|error| LoadError::Program { name: name.into(), error })
    }
}

const fn attach_type(hook: Hook) -> TcAttachType {
    match hook {
        Hook::Ingress => TcAttachType::Ingress,
        Hook::Egress => TcAttachType::Egress,
    }
}

fn tcx(
    classifier: &mut SchedClassifier,
    interface: &str,
    hook: Hook,
) -> Result<Attachment, ProgramError> {
    let order = match hook {
        Hook::Ingress => LinkOrder::first(),
        Hook::Egress => LinkOrder::last(),
    };
    let options = TcAttachOptions::TcxOrder(order);
    let id = classifier.attach_with_options(interface, attach_type(hook), options)?;
    Ok(Attachment { how: How::Tcx, _link: classifier.take_link(id)? })
}

fn clsact(
    classifier: &mut SchedClassifier,
    interface: &str,
    hook: Hook,
) -> Result<Attachment, ProgramError> {
    let qdisc_is_ours = match qdisc_add_clsact(interface) {
        Ok(()) => true,
        Err(e) if is_os_error(&e, libc::EEXIST) => false,
        Err(e) => return Err(e.into()),
    };
    let priority = match hook {
        Hook::Ingress => FIRST,
        Hook::Egress => LAST,
    };
    let options = TcAttachOptions::Netlink(NlOptions { priority, ..NlOptions::default() });
    let id = classifier.attach_with_options(interface, attach_type(hook), options)?;
    Ok(Attachment { how: How::Clsact { qdisc_is_ours }, _link: classifier.take_link(id)? })
}

/// Kernels before 6.6 do not know the attach type and answer EINVAL.
fn has_no_tcx(error: &ProgramError) -> bool {
    is_os_error(error, libc::EINVAL) || is_os_error(error, libc::EOPNOTSUPP)
}

fn is_os_error(error: &(dyn std::error::Error + 'static), code: i32) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error() == Some(code);
        }
        if let Some(TcError::IoError(io)) = error.downcast_ref::<TcError>() {
            return io.raw_os_error() == Some(code);
        }
        cause = error.source();
    }
    false
}
