//! What `deploy/` makes of itself: objects as kubectl's kustomize and as Helm's engine render them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value};

/// Prints what Helm's engine makes of a chart: a map of template and text. Values that the chart's schema
/// refuses, and findings of `helm lint --strict`, are errors.
const RENDER: &str = r#"
import json, sys
from helm_python import Chart, lint
chart, namespace, values = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with Chart.load(chart) as loaded:
    loaded.validate_schema(values)
    rendered = loaded.render(values, name="orb8", namespace=namespace)
findings = [m for m in lint(chart, values, strict=True, namespace=namespace)["messages"] if m["severity"] > 1]
if findings:
    sys.exit(f"helm lint: {findings}")
json.dump(rendered, sys.stdout)
"#;

/// The repository's root.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A program that scripts/test-tools.sh brought.
///
/// # Errors
/// When it is not there, which never means that a test may be left out.
pub fn test_tool(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot tell the running executable")?;
    let bin_dir = std::env::var_os("ORB8_BIN_DIR").map(PathBuf::from);
    let from = bin_dir.iter().flat_map(|dir| dir.ancestors()).chain(exe.ancestors());
    let mut places = from.map(|dir| dir.join("test-tools").join(name));
    places.find(|path| path.exists()).with_context(|| {
        format!("no test-tools/{name} above {}: run scripts/test-tools.sh", exe.display())
    })
}

/// What a command prints, if it succeeds; else an error with what it complained of.
///
/// # Errors
/// As above.
pub fn printed(command: &mut Command) -> Result<String> {
    crate::image::output(command)
}

/// The objects of a kustomization below `deploy/`.
///
/// # Errors
/// What kubectl says.
pub fn kustomized(below_deploy: &str) -> Result<Vec<Value>> {
    let dir = repository().join("deploy").join(below_deploy);
    let text = printed(Command::new(test_tool("python/bin/kubectl")?).arg("kustomize").arg(&dir))?;
    documents(&text).with_context(|| dir.display().to_string())
}

/// The objects of the chart with `values`, without what Helm adds to their labels.
///
/// # Errors
/// What Helm says, its linter included.
pub fn charted(values: &Value) -> Result<Vec<Value>> {
    let chart = repository().join("deploy/helm/orb8");
    let mut helm = Command::new(test_tool("python/bin/python")?);
    let helm =
        helm.args(["-B", "-c", RENDER]).arg(chart).args(["orb8-system", &values.to_string()]);
    let done = helm.output()?;
    let complaint = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "Helm: {complaint}");
    let text = String::from_utf8(done.stdout)?;
    let templates: Map<String, Value> = serde_json::from_str(&text)?;
    let mut objects = Vec::new();
    for (name, text) in templates.iter().filter(|(name, _)| name.ends_with(".yaml")) {
        let text = text.as_str().context("a template is text")?;
        objects.extend(documents(text).with_context(|| format!("{name}:\n{text}"))?);
    }
    objects.iter_mut().try_for_each(without_helms_labels)?;
    Ok(objects)
}

/// Takes off what every object of a release has to have.
fn without_helms_labels(object: &mut Value) -> Result<()> {
    let title = title(object);
    let labels = object.pointer_mut("/metadata/labels").and_then(Value::as_object_mut);
    let labels = labels.with_context(|| format!("{title} has no labels"))?;
    for (label, expected) in [
        ("app.kubernetes.io/managed-by", "Helm"),
        ("app.kubernetes.io/instance", "orb8"),
        ("helm.sh/chart", "orb8-0.1.0"),
    ] {
        let value = labels.shift_remove(label);
        ensure!(value == Some(expected.into()), "{title}: label {label} is {value:?}");
    }
    Ok(())
}

/// The objects in a file below `deploy/`.
///
/// # Errors
/// When it cannot be read, or is not YAML.
pub fn file(below_deploy: &str) -> Result<Vec<Value>> {
    let path = repository().join("deploy").join(below_deploy);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    documents(&text).with_context(|| path.display().to_string())
}

/// The YAML documents of a text, without empty ones.
///
/// # Errors
/// When it is not YAML.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Option<Value>> = serde_saphyr::from_multiple(text)?;
    Ok(documents.into_iter().flatten().filter(|document| !document.is_null()).collect())
}

/// `DaemonSet/orb8-agent`
#[must_use]
pub fn title(object: &Value) -> String {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or("?");
    format!("{}/{}", text("/kind"), text("/metadata/name"))
}

/// The object with this title.
///
/// # Errors
/// When there is none; the error lists those that there are.
pub fn object<'a>(objects: &'a [Value], wanted: &str) -> Result<&'a Value> {
    let found = objects.iter().find(|object| title(object) == wanted);
    found.with_context(|| {
        format!("no {wanted} among {:?}", objects.iter().map(title).collect::<Vec<_>>())
    })
}
