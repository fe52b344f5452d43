//! Manifests, programs and documents agree with each other: flags, ports, permissions, names.

use std::{collections::BTreeSet, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use orb8_tests::manifests::{file, kustomized, object, printed, repository, title};
use serde_json::{Value, json};

/// A container of a workload.
fn container<'a>(objects: &'a [Value], workload: &str) -> Result<&'a Value> {
    object(objects, workload)?.pointer("/spec/template/spec/containers/0").context("no container")
}

fn arguments(container: &Value) -> Result<Vec<&str>> {
    let arguments = container["args"].as_array().context("no arguments")?;
    arguments.iter().map(|argument| argument.as_str().context("not text")).collect()
}

/// A program of the workspace, as it was built.
fn program(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let bin_dir = std::env::var_os("ORB8_BIN_DIR").map(PathBuf::from);
    let mut dirs = bin_dir.into_iter().chain(exe.ancestors().skip(1).take(2).map(PathBuf::from));
    dirs.find_map(|dir| Some(dir.join(name)).filter(|path| path.is_file()))
        .with_context(|| format!("no {name}: build it with `cargo build --bins`"))
}

/// Flags of a program, by its own `--help`.
fn flags(name: &str) -> Result<BTreeSet<String>> {
    let help = printed(Command::new(program(name)?).arg("--help"))?;
    let words = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    Ok(words.filter(|word| word.starts_with("--")).map(String::from).collect())
}

/// Whether a crate is part of the workspace: manifests may be ahead of it by a crate, not by a flag.
fn member(name: &str) -> Result<bool> {
    let manifest = std::fs::read_to_string(repository().join("Cargo.toml"))?;
    Ok(manifest.contains(&format!("\"{name}\",")))
}

#[test]
fn the_programs_take_every_flag_that_the_manifests_give_them() -> Result<()> {
    for (name, workload) in
        [("orb8-agent", "DaemonSet/orb8-agent"), ("orb8-server", "Deployment/orb8-server")]
    {
        if !member(name)? {
            continue;
        }
        let known = flags(name)?;
        for kustomization in [".", "overlays/insecure-dev"] {
            let objects = kustomized(kustomization)?;
            for argument in arguments(container(&objects, workload)?)? {
                let flag = argument.split('=').next().unwrap_or_default();
                if flag.starts_with("--tls-") && !member("orb8-transport")? {
                    continue;
                }
                ensure!(known.contains(flag), "{name} has no {flag}; it has {known:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn ports_agree_wherever_they_are_named() -> Result<()> {
    let objects = kustomized("overlays/full")?;
    for (name, workload, grpc, metrics) in [
        ("orb8-agent", "DaemonSet/orb8-agent", 9090, 9091),
        ("orb8-server", "Deployment/orb8-server", 8080, 8081),
    ] {
        let container = container(&objects, workload)?;
        let argument = |flag: &str| -> Result<u64> {
            let mut arguments = arguments(container)?.into_iter();
            let value =
                arguments.find_map(|argument| argument.strip_prefix(flag)).context("none")?;
            Ok(value.rsplit(':').next().unwrap_or_default().parse()?)
        };
        assert_eq!((argument("--listen=")?, argument("--metrics-listen=")?), (grpc, metrics));
        let service = object(&objects, &format!("Service/{name}"))?;
        for (port, number) in [("grpc", grpc), ("metrics", metrics)] {
            let named =
                |ports: &Value| ports.as_array()?.iter().find(|p| p["name"] == port).cloned();
            let of_container = named(&container["ports"]).context("no such port")?;
            assert_eq!(of_container["containerPort"], number);
            if name == "orb8-agent" {
                assert_eq!(of_container["hostPort"], number, "it is on the host's network");
            }
            let of_service = named(&service["spec"]["ports"]).context("no such port")?;
            assert_eq!(of_service["port"], number);
            assert_eq!(of_service["targetPort"], port);
        }
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let path = if probe == "readinessProbe" { "/readyz" } else { "/healthz" };
            let get = &container[probe]["httpGet"];
            assert_eq!((&get["path"], &get["port"]), (&json!(path), &json!("metrics")));
        }
        let monitor = object(&objects, &format!("ServiceMonitor/{name}"))?;
        let endpoint = &monitor["spec"]["endpoints"][0];
        assert_eq!(
            (&endpoint["port"], &endpoint["honorLabels"]),
            (&json!("metrics"), &json!(true))
        );
    }
    let egress = object(&objects, "NetworkPolicy/orb8-server-egress")?;
    assert_eq!(egress["spec"]["egress"][0]["ports"][0]["port"], 9090, "the server asks agents");
    Ok(())
}

#[test]
fn roles_permit_what_is_written_here_and_nothing_else() -> Result<()> {
    let rbac = file("rbac.yaml")?;
    let rules = |name: &str| Ok::<_, anyhow::Error>(object(&rbac, name)?["rules"].clone());
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({ "apiGroups": [group], "resources": resources, "verbs": verbs });
    let agent = json!([rule("", &["pods", "nodes"], &["get", "list", "watch"])]);
    assert_eq!(rules("ClusterRole/orb8-agent")?, agent);
    let server = json!([
        rule("", &["pods", "nodes", "services"], &["list", "watch"]),
        rule("discovery.k8s.io", &["endpointslices"], &["list", "watch"]),
        rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
        rule("authorization.k8s.io", &["subjectaccessreviews"], &["create"]),
    ]);
    assert_eq!(rules("ClusterRole/orb8-server")?, server);
    let titles: BTreeSet<String> = rbac.iter().map(title).collect();
    assert_eq!(titles.len(), 6, "an account, a role and a binding for each: {titles:?}");
    for name in ["orb8-agent", "orb8-server"] {
        let binding = object(&rbac, &format!("ClusterRoleBinding/{name}"))?;
        assert_eq!(binding["roleRef"]["name"], name);
        assert_eq!(binding["subjects"][0]["name"], name);
        assert_eq!(binding["subjects"].as_array().map(Vec::len), Some(1));
    }
    Ok(())
}

#[test]
fn nobody_is_privileged_and_the_server_has_nothing_at_all() -> Result<()> {
    let objects = kustomized(".")?;
    let agent = container(&objects, "DaemonSet/orb8-agent")?;
    let server = container(&objects, "Deployment/orb8-server")?;
    for container in [agent, server] {
        let context = &container["securityContext"];
        assert_eq!(context["privileged"], false);
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        for mount in container["volumeMounts"].as_array().context("no mounts")? {
            assert_eq!(mount["readOnly"], true, "{mount}");
        }
        assert!(container["resources"]["limits"]["memory"].is_string());
    }
    let capabilities = json!(["BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE", "SYS_RESOURCE"]);
    assert_eq!(agent["securityContext"]["capabilities"]["add"], capabilities);
    assert_eq!(agent["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert!(server["securityContext"]["capabilities"]["add"].is_null());
    let pod = object(&objects, "Deployment/orb8-server")?.pointer("/spec/template/spec");
    let pod = pod.context("no pod")?;
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for namespace in ["hostNetwork", "hostPID", "hostIPC"] {
        assert!(pod[namespace].is_null(), "{namespace}");
    }
    Ok(())
}

#[test]
fn the_document_gives_a_reason_for_every_permission() -> Result<()> {
    let document = std::fs::read_to_string(repository().join("docs/deploy.md"))?;
    let objects = kustomized(".")?;
    let added =
        &container(&objects, "DaemonSet/orb8-agent")?["securityContext"]["capabilities"]["add"];
    for capability in added.as_array().context("no capabilities")? {
        let row = format!("| `{}` |", capability.as_str().unwrap_or_default());
        ensure!(document.contains(&row), "docs/deploy.md has no row {row}");
    }
    for word in ["hostNetwork", "hostPID", "tokenreviews", "subjectaccessreviews", "endpointslices"]
    {
        ensure!(document.contains(word), "docs/deploy.md says nothing of {word}");
    }
    Ok(())
}
