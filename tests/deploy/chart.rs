//! The chart renders what kustomize does, and refuses values that mean nothing.

use anyhow::{Context as _, Result, ensure};
use orb8_tests::manifests::{charted, kustomized, object, title};
use serde_json::{Value, json};

/// Lists say less about order in the API than in a file, but here both sides keep one order.
fn assert_same(kustomization: &str, values: &Value) -> Result<()> {
    let kustomized = kustomized(kustomization)?;
    let charted = charted(values)?;
    let titles = |objects: &[Value]| {
        let mut titles: Vec<String> = objects.iter().map(title).collect();
        titles.sort();
        titles
    };
    assert_eq!(titles(&kustomized), titles(&charted), "{kustomization} and {values}");
    for ours in &kustomized {
        let title = title(ours);
        let theirs = object(&charted, &title)?;
        let difference = difference(ours, theirs);
        ensure!(
            difference.is_none(),
            "{title} of {kustomization} (left) is not what the chart renders with {values}: {}",
            difference.unwrap_or_default()
        );
    }
    Ok(())
}

/// The first place at which they differ. An empty list is as good as none.
fn difference(ours: &Value, theirs: &Value) -> Option<String> {
    let is_nothing = |value: &Value| value.is_null() || *value == json!([]);
    match (ours, theirs) {
        (Value::Object(one), Value::Object(other)) => {
            let names = one.keys().chain(other.keys().filter(|name| !one.contains_key(*name)));
            names.into_iter().find_map(|name| {
                let found = difference(&ours[name], &theirs[name])?;
                Some(format!(".{name}{found}"))
            })
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            one.iter().zip(other).enumerate().find_map(|(i, (one, other))| {
                let found = difference(one, other)?;
                Some(format!("[{i}]{found}"))
            })
        }
        (one, other) if one == other || is_nothing(one) && is_nothing(other) => None,
        (one, other) => Some(format!(": {one} and {other}")),
    }
}

#[test]
fn the_chart_renders_the_objects_of_the_manifests() -> Result<()> {
    let namespace = json!({ "create": true });
    assert_same(".", &json!({ "namespace": namespace }))?;
    let insecure = json!({ "namespace": namespace, "tls": { "insecure": true } });
    assert_same("overlays/insecure-dev", &insecure)?;
    let full = json!({
        "namespace": namespace,
        "tls": { "certManager": true },
        "prometheus": { "enabled": true },
    });
    assert_same("overlays/full", &full)?;
    // What Helm itself makes the Namespace of is not rendered.
    let without: Vec<String> = charted(&json!({}))?.iter().map(title).collect();
    ensure!(!without.iter().any(|title| title.starts_with("Namespace")), "{without:?}");
    Ok(())
}

#[test]
fn values_reach_the_objects() -> Result<()> {
    let values = json!({
        "agent": {
            "image": { "repository": "registry.example/orb8/agent", "tag": "1.2.3", "pullPolicy": "Always" },
            "grpcPort": 19090,
            "ipv6": true,
            "extraArgs": ["--ring-buffer-size=8388608"],
            "runtimeDirectory": "/run/crio",
        },
        "server": { "replicas": 3 },
        "networkPolicy": { "prometheusNamespace": "observability" },
    });
    let objects = charted(&values)?;
    let container = object(&objects, "DaemonSet/orb8-agent")?
        .pointer("/spec/template/spec/containers/0")
        .context("no container")?;
    assert_eq!(container["image"], "registry.example/orb8/agent:1.2.3");
    assert_eq!(container["args"][0], "--listen=[$(NODE_IP)]:19090");
    let arguments = container["args"].as_array().context("no arguments")?;
    assert_eq!(arguments.last(), Some(&json!("--ring-buffer-size=8388608")));
    let runtime = json!({ "name": "runtime", "mountPath": "/run/crio", "readOnly": true });
    assert!(container["volumeMounts"].as_array().is_some_and(|mounts| mounts.contains(&runtime)));
    assert_eq!(object(&objects, "Service/orb8-agent")?["spec"]["ports"][0]["port"], 19090);
    let egress = object(&objects, "NetworkPolicy/orb8-server-egress")?;
    assert_eq!(egress["spec"]["egress"][0]["ports"][0]["port"], 19090);
    assert_eq!(object(&objects, "Deployment/orb8-server")?["spec"]["replicas"], 3);
    let ingress = object(&objects, "NetworkPolicy/orb8-agent-ingress")?.to_string();
    assert!(ingress.contains("observability") && !ingress.contains("monitoring"), "{ingress}");
    let none = charted(&json!({ "networkPolicy": { "enabled": false } }))?;
    assert!(!none.iter().any(|object| object["kind"] == "NetworkPolicy"));
    Ok(())
}

#[test]
fn values_that_mean_nothing_are_refused_by_name() -> Result<()> {
    for (values, named) in [
        (json!({ "agent": { "imagee": {} } }), "imagee"),
        (json!({ "agents": {} }), "agents"),
        (json!({ "agent": { "grpcPort": 0 } }), "grpcPort"),
        (json!({ "agent": { "seccompProfile": { "type": "None" } } }), "seccompProfile"),
        (json!({ "tls": { "insecure": true, "certManager": true } }), "tls"),
        (json!({ "prometheus": { "interval": "often" } }), "interval"),
    ] {
        let error = charted(&values).err().with_context(|| format!("{values} was taken"))?;
        let error = format!("{error:#}");
        ensure!(error.contains(named), "{values}: {error}");
    }
    Ok(())
}

#[test]
fn the_alerts_of_the_chart_are_those_of_the_component() -> Result<()> {
    // Said by the comparison above as well, but there nobody would know what to do about it.
    let component = orb8_tests::manifests::file("components/prometheus/rules.yaml")?;
    let chart = orb8_tests::manifests::file("helm/orb8/files/alerts.yaml")?;
    ensure!(
        component[0]["spec"] == chart[0],
        "deploy/helm/orb8/files/alerts.yaml is not `spec` of deploy/components/prometheus/rules.yaml"
    );
    Ok(())
}
