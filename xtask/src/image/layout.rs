//! An OCI image layout of one layer: `oci-layout`, `index.json`, and blobs by their SHA-256.
//! Specification: opencontainers/image-spec 1.0.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Of everything in an image: that it is built again changes nothing.
const WHEN: &str = "1970-01-01T00:00:00Z";

/// What an image says about itself.
pub(super) struct Image<'a> {
    /// With registry and tag, as tools show it after importing it.
    pub(super) name: &'a str,
    pub(super) entrypoint: &'a str,
    pub(super) user: &'a str,
    pub(super) ports: &'a [u16],
    pub(super) title: &'a str,
    pub(super) version: &'a str,
    /// Commit that it was built from.
    pub(super) revision: &'a str,
}

/// Bytes of an image.
pub(super) struct Size {
    /// Of all blobs, as they go over the network.
    pub(super) compressed: u64,
    /// Of the layer on disk.
    pub(super) unpacked: u64,
}

/// Writes the layout of an image that holds what is in `files`. What was in `dir` is gone.
pub(super) fn write(dir: &Path, image: &Image<'_>, files: &Path) -> Result<Size> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| blobs.display().to_string())?;

    let unpacked = tempfile::tempdir()?;
    let layer = unpacked.path().join("layer.tar");
    tar(files, &layer, &["."])?;
    let diff_id = format!("sha256:{}", sha256(&layer)?);
    let unpacked_bytes = fs::metadata(&layer)?.len();
    // -n: no name and no time in its header.
    printed(Command::new("gzip").args(["-n", "-9"]).arg(&layer))?;
    let layer = add_file(&blobs, &layer.with_extension("tar.gz"), LAYER)?;

    let ports: Map<String, Value> =
        image.ports.iter().map(|port| (format!("{port}/tcp"), json!({}))).collect();
    let labels = json!({
        "org.opencontainers.image.title": image.title,
        "org.opencontainers.image.version": image.version,
        "org.opencontainers.image.revision": image.revision,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.source": "https://github.com/orb8/orb8",
    });
    let config = json!({
        "created": WHEN,
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "User": image.user,
            "Entrypoint": [image.entrypoint],
            "ExposedPorts": ports,
            "Env": ["PATH=/"],
            "WorkingDir": "/",
            "Labels": labels,
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created": WHEN, "created_by": "cargo xtask image" }],
    });
    let config = add(&blobs, config.to_string().as_bytes(), CONFIG)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": [layer],
        "annotations": labels,
    });
    let mut manifest = add(&blobs, manifest.to_string().as_bytes(), MANIFEST)?;
    manifest["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    manifest["annotations"] = json!({
        // skopeo and podman read the one, containerd the other.
        "org.opencontainers.image.ref.name": image.name,
        "io.containerd.image.name": image.name,
    });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(dir.join("index.json"), index.to_string())?;
    fs::write(dir.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())?;

    let sizes = [&config, &layer, &manifest].map(|blob| blob["size"].as_u64().unwrap_or_default());
    Ok(Size { compressed: sizes.iter().sum(), unpacked: unpacked_bytes })
}

/// Follows every reference from `index.json` on: each blob is there, with its size and its digest, and
/// nothing else is.
pub(super) fn verify(dir: &Path) -> Result<()> {
    let index = read(&dir.join("index.json"))?;
    let mut seen = Vec::new();
    for manifest in descriptors(&index["manifests"])? {
        let manifest = read(&verified(dir, manifest, &mut seen)?)?;
        let config = read(&verified(dir, &manifest["config"], &mut seen)?)?;
        let layers = descriptors(&manifest["layers"])?;
        let diff_ids = descriptors(&config["rootfs"]["diff_ids"])?;
        ensure!(
            layers.len() == diff_ids.len(),
            "{} layers, {} diff_ids",
            layers.len(),
            diff_ids.len()
        );
        for (layer, diff_id) in layers.iter().zip(diff_ids) {
            let path = verified(dir, layer, &mut seen)?;
            let mut unzip = Command::new("gzip")
                .args(["-d", "-c"])
                .arg(&path)
                .stdout(Stdio::piped())
                .spawn()?;
            let unpacked = unzip.stdout.take().context("no output of gzip")?;
            let digest = printed(Command::new("sha256sum").stdin(unpacked))?;
            ensure!(unzip.wait()?.success(), "{} is not gzip", path.display());
            let digest = digest.split_whitespace().next().unwrap_or_default();
            ensure!(*diff_id == format!("sha256:{digest}"), "{diff_id} unpacks to sha256:{digest}");
        }
    }
    let stored = fs::read_dir(dir.join("blobs/sha256"))?.count();
    ensure!(stored == seen.len(), "{stored} blobs, of which {} are referred to", seen.len());
    Ok(())
}

fn verified(dir: &Path, descriptor: &Value, seen: &mut Vec<String>) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    let digest = digest.with_context(|| format!("no digest in {descriptor}"))?;
    let path = dir.join("blobs/sha256").join(digest);
    let size = fs::metadata(&path).with_context(|| path.display().to_string())?.len();
    ensure!(descriptor["size"].as_u64() == Some(size), "{digest} has {size} bytes: {descriptor}");
    let real = sha256(&path)?;
    ensure!(real == digest, "blob {digest} has the digest {real}");
    seen.push(digest.to_owned());
    Ok(path)
}

fn descriptors(list: &Value) -> Result<&Vec<Value>> {
    let list = list.as_array().filter(|list| !list.is_empty());
    list.context("an empty list, expected descriptors")
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

/// A tar whose bytes say nothing of when, where and by whom it was made.
pub(super) fn tar(from: &Path, to: &Path, what: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args([
        "--create",
        "--sort=name",
        "--mtime=@0",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
    ]);
    tar.args(["--mode=u=rwX,go=rX", "--format=ustar"]);
    tar.arg("--file").arg(to).arg("--directory").arg(from).args(what);
    printed(&mut tar).map(drop)
}

fn add_file(blobs: &Path, file: &Path, media_type: &str) -> Result<Value> {
    let (digest, size) = (sha256(file)?, fs::metadata(file)?.len());
    // The folder that it is in may be on another disk.
    fs::copy(file, blobs.join(&digest)).with_context(|| file.display().to_string())?;
    Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size }))
}

fn add(blobs: &Path, bytes: &[u8], media_type: &str) -> Result<Value> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(bytes)?;
    add_file(blobs, file.path(), media_type)
}

fn sha256(path: &Path) -> Result<String> {
    let said = printed(Command::new("sha256sum").arg("--binary").arg(path))?;
    let digest = said.split_whitespace().next().context("sha256sum says nothing")?;
    Ok(digest.trim_start_matches('\\').to_owned())
}

fn printed(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let complaint = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?}: {}: {complaint}", done.status);
    Ok(String::from_utf8(done.stdout)?)
}

/// As Go calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: Image<'_> = Image {
        name: "docker.io/orb8/test:latest",
        entrypoint: "/program",
        user: "65532:65532",
        ports: &[8080],
        title: "program",
        version: "1.2.3",
        revision: "unknown",
    };

    fn written() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("files");
        fs::create_dir_all(files.join("etc")).unwrap();
        fs::write(files.join("program"), "the program").unwrap();
        fs::write(files.join("etc/passwd"), "root:x:0:0::/:\n").unwrap();
        let layout = dir.path().join("layout");
        write(&layout, &IMAGE, &files).unwrap();
        (dir, layout)
    }

    #[test]
    fn a_layout_is_whole_and_holds_the_files() {
        let (dir, layout) = written();
        verify(&layout).unwrap();
        let manifest = &read(&layout.join("index.json")).unwrap()["manifests"][0];
        assert_eq!(manifest["annotations"]["io.containerd.image.name"], IMAGE.name);
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().replace("sha256:", "");
            layout.join("blobs/sha256").join(digest)
        };
        let manifest = read(&blob(manifest)).unwrap();
        let config = read(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/program"]));
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["ExposedPorts"], json!({ "8080/tcp": {} }));
        let layer = blob(&manifest["layers"][0]);
        let list = printed(Command::new("tar").args(["-tvzf"]).arg(layer)).unwrap();
        assert!(list.contains("0/0") && list.contains("1970-01-01"), "{list}");
        assert!(list.contains("./program") && list.contains("./etc/passwd"), "{list}");
        drop(dir);
    }

    #[test]
    fn the_same_files_give_the_same_digests() {
        let index = |(dir, layout): (tempfile::TempDir, PathBuf)| {
            let text = fs::read_to_string(layout.join("index.json")).unwrap();
            drop(dir);
            text
        };
        assert_eq!(index(written()), index(written()));
    }

    #[test]
    fn a_blob_that_was_changed_or_added_is_found() {
        let (_dir, layout) = written();
        let blobs = layout.join("blobs/sha256");
        let one = fs::read_dir(&blobs).unwrap().next().unwrap().unwrap().path();
        let mut bytes = fs::read(&one).unwrap();
        bytes[20] ^= 1;
        fs::write(&one, &bytes).unwrap();
        let error = verify(&layout).unwrap_err().to_string();
        assert!(error.contains("digest"), "{error}");
        bytes[20] ^= 1;
        fs::write(&one, &bytes).unwrap();
        verify(&layout).unwrap();
        fs::write(blobs.join("more"), "of it").unwrap();
        let error = verify(&layout).unwrap_err().to_string();
        assert!(error.contains("4 blobs, of which 3"), "{error}");
    }
}
