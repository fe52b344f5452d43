//! Packages of another Debian suite: apt with folders of its own, from the mirror that this
//! machine's apt uses. What is installed here is neither looked at nor changed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::tool;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The packages of one suite, for amd64.
pub(super) struct Suite {
    config: PathBuf,
}

impl Suite {
    /// Reads the suite's lists of packages from the mirror into `folder`.
    pub(super) fn open(name: &str, folder: &Path) -> Result<Self> {
        for needed in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(needed))?;
        }
        // Nothing is installed.
        fs::write(folder.join("status"), "")?;
        fs::write(folder.join("sources.list"), sources(name)?)?;
        let suite = Self { config: folder.join("apt.conf") };
        fs::write(&suite.config, configuration(folder))?;
        tool::output(suite.command("apt-get")?.args(["-q", "update"]))
            .with_context(|| format!("cannot read the lists of Debian's {name}"))?;
        Ok(suite)
    }

    /// What `package` depends on, without alternatives.
    pub(super) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let listed = tool::text(self.command("apt-cache")?.args(["depends", package]))?;
        let names = listed.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(String::from).collect())
    }

    /// Downloads the packages and unpacks them into `folder`, without running any of their scripts.
    pub(super) fn unpack(&self, packages: &[String], folder: &Path) -> Result<()> {
        let downloads = folder.with_extension("debs");
        fs::create_dir_all(&downloads)?;
        let mut download = self.command("apt-get")?;
        download.current_dir(&downloads).args(["-q", "download"]).args(packages);
        tool::output(&mut download)?;
        for archive in fs::read_dir(&downloads)? {
            let archive = archive?.path();
            tool::output(tool::command("dpkg-deb")?.arg("--extract").arg(archive).arg(folder))?;
        }
        fs::remove_dir_all(&downloads)?;
        Ok(())
    }

    fn command(&self, name: &str) -> Result<Command> {
        let mut command = tool::command(name)?;
        command.env("APT_CONFIG", &self.config);
        Ok(command)
    }
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    // Suites that are no longer maintained have a signature that has run out.
    format!(
        "Dir::State \"{folder}\";\n\
         Dir::State::lists \"{folder}/lists\";\n\
         Dir::State::status \"{folder}/status\";\n\
         Dir::Cache \"{folder}/cache\";\n\
         Dir::Etc::sourcelist \"{folder}/sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Check-Valid-Until \"false\";\n"
    )
}

/// The suite at every mirror of Debian that this machine's apt has.
fn sources(suite: &str) -> Result<String> {
    let mut targets = tool::command("apt-get")?;
    targets.args(["indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"]);
    let sources = sources_at(suite, &tool::text(&mut targets)?);
    ensure!(
        !sources.is_empty(),
        "apt on this machine knows no mirror of Debian; it has to be in apt's sources, and \
         `apt-get update` to have been run"
    );
    Ok(sources)
}

/// From lines of an address and a label.
fn sources_at(suite: &str, targets: &str) -> String {
    let mut lines: Vec<_> = targets
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(address, label)| match label {
            "Debian" => Some((address, suite.to_owned())),
            "Debian-Security" if suite != "sid" => Some((address, format!("{suite}-security"))),
            _ => None,
        })
        .map(|(address, suite)| {
            format!("deb [target=Packages signed-by={KEYRING}] {address} {suite} main\n")
        })
        .collect();
    lines.sort();
    lines.dedup();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "http://mirror.example/debian/ Debian\n\
                           http://mirror.example/debian/ Debian\n\
                           http://mirror.example/debian/ Debian Backports\n\
                           http://mirror.example/debian-security/ Debian-Security\n\
                           http://elsewhere.example/ Somebody\n";

    #[test]
    fn a_suite_is_taken_from_the_mirrors_of_debian_and_from_nowhere_else() {
        let sources = sources_at("trixie", TARGETS);
        let lines: Vec<_> = sources.lines().filter_map(|line| line.split("] ").nth(1)).collect();
        let expected = [
            "http://mirror.example/debian-security/ trixie-security main",
            "http://mirror.example/debian/ trixie main",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn sid_has_no_security_archive() {
        let sources = sources_at("sid", TARGETS);
        assert_eq!(sources.lines().count(), 1);
        assert!(sources.ends_with("http://mirror.example/debian/ sid main\n"));
    }
}
