//! What hangs at the hooks of a node's interfaces.

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use orb8_testkit::Node;

/// Names of the programs at both hooks of `interface`, by TCX and as filters of clsact. To be
/// called on a thread in the node's network namespace.
pub fn programs_at(node: &Node, interface: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
        let (_revision, programs) = SchedClassifier::query_tcx(interface, hook)?;
        names.extend(programs.iter().filter_map(|p| p.name_as_str().map(str::to_owned)));
    }
    names.extend(filters_at(node, interface)?);
    Ok(names)
}

/// Names of the filters of clsact at both hooks of `interface`.
pub fn filters_at(node: &Node, interface: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for hook in ["ingress", "egress"] {
        let listed = tc(node, &["-j", "filter", "show", "dev", interface, hook])?;
        let filters: serde_json::Value = serde_json::from_str(&listed)?;
        for filter in filters.as_array().context("not a list of filters")? {
            names.extend(filter["options"]["bpf_name"].as_str().map(str::to_owned));
        }
    }
    Ok(names)
}

/// Whether `interface` has a clsact qdisc.
pub fn has_clsact(node: &Node, interface: &str) -> Result<bool> {
    Ok(tc(node, &["qdisc", "show", "dev", interface])?.contains("clsact"))
}

/// What `tc` prints, in the node's network namespace.
pub fn tc(node: &Node, arguments: &[&str]) -> Result<String> {
    let output = node.exec(&[&["tc"], arguments].concat())?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tc {arguments:?}: {complaint}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Whether a program is orb8's, by its name.
#[must_use]
pub fn is_orb8(name: &str) -> bool {
    name.starts_with("orb8_")
}
