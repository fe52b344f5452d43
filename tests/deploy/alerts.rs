//! The alerts, judged by Prometheus's own promtool: that they parse, and that each fires when it should.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use orb8_tests::manifests::{documents, file, printed, repository, test_tool};
use serde_json::Value;

/// A folder with the rules as Prometheus reads them, and with the tests of them.
fn rules_and_tests() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    let rules = file("components/prometheus/rules.yaml")?;
    fs::write(dir.path().join("alerts.yaml"), rules[0]["spec"].to_string())?;
    let tests = repository().join("tests/fixtures/alerts_test.yaml");
    fs::copy(&tests, dir.path().join("alerts_test.yaml"))
        .with_context(|| tests.display().to_string())?;
    Ok(dir)
}

#[test]
fn prometheus_takes_the_alerts() -> Result<()> {
    let dir = rules_and_tests()?;
    let mut check = Command::new(test_tool("bin/promtool")?);
    let said = printed(
        check.args(["check", "rules", "--lint-fatal"]).arg(dir.path().join("alerts.yaml")),
    )?;
    ensure!(said.contains("SUCCESS"), "{said}");
    Ok(())
}

#[test]
fn each_alert_fires_when_it_should_and_not_before() -> Result<()> {
    let dir = rules_and_tests()?;
    let test = ["test", "rules", "alerts_test.yaml"];
    printed(Command::new(test_tool("bin/promtool")?).current_dir(dir.path()).args(test))?;

    let names = |text: &str, key: &str| -> BTreeSet<String> {
        let lines =
            text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key));
        lines.map(|name| name.trim().to_owned()).collect()
    };
    let rules = fs::read_to_string(repository().join("deploy/components/prometheus/rules.yaml"))?;
    let text = fs::read_to_string(dir.path().join("alerts_test.yaml"))?;
    let tests: Vec<Value> = documents(&text)?;
    let cases = tests[0]["tests"].as_array().context("no tests")?;
    let fires = |name: &str| {
        cases.iter().flat_map(|case| case["alert_rule_test"].as_array().into_iter().flatten()).any(
            |case| {
                case["alertname"] == name
                    && case["exp_alerts"].as_array().is_some_and(|a| !a.is_empty())
            },
        )
    };
    for alert in names(&rules, "alert:") {
        ensure!(fires(&alert), "no test makes {alert} fire");
    }
    Ok(())
}
