//! The result, for people and for programs.

use anyhow::Result;
use serde_json::json;

use super::{
    cases::{Case, Seat},
    measure::Cost,
    probe::Size,
};

pub(super) fn table(rounds: u32, packets: u32, costs: &[(Case, Cost)], sizes: &[Size]) {
    println!("Nanoseconds per packet over an empty program on the same packets");
    println!(
        "{}; {rounds} rounds of {packets} packets, taking turns, thread CPU time\n",
        machine()
    );
    println!(
        "{:34} {:>7} {:>8} {:>8} {:>8} {:>6} {:>8}",
        "traffic", "family", "median", "min", "max", "aim", "floor"
    );
    for (case, cost) in costs {
        let aim = case.aim.map_or_else(String::new, |aim| format!("≤ {aim}"));
        println!(
            "{:34} {:>7} {:8.1} {:8.1} {:8.1} {aim:>6} {:8.1}{}",
            case.name,
            case.family.to_string(),
            cost.median,
            cost.min,
            cost.max,
            cost.floor,
            if case.aim.is_some_and(|aim| cost.median > aim) { "  missed" } else { "" }
        );
    }
    println!(
        "\n{:34} {:>22} {:>12} {:>14}",
        "program", "verified instructions", "eBPF bytes", "machine bytes"
    );
    for size in sizes {
        println!(
            "{:34} {:22} {:12} {:14}",
            size.program, size.verified, size.translated, size.jited
        );
    }
}

pub(super) fn json(
    rounds: u32,
    packets: u32,
    costs: &[(Case, Cost)],
    sizes: &[Size],
) -> Result<()> {
    let cases: Vec<_> = costs
        .iter()
        .map(|(case, cost)| {
            json!({
                "traffic": case.name,
                "family": case.family.to_string(),
                "program": match case.seat {
                    Seat::Interface => "orb8_ingress",
                    Seat::Socket(program, _) => program,
                },
                "flows": case.flows,
                "packets_in_a_row": 1_u32 << case.in_a_row,
                "table_entries": case.table,
                "floor_ns": cost.floor,
                "over_floor_ns": { "median": cost.median, "min": cost.min, "max": cost.max },
                "aim_ns": case.aim,
            })
        })
        .collect();
    let programs: Vec<_> = sizes
        .iter()
        .map(|size| {
            json!({
                "program": size.program,
                "verified_instructions": size.verified,
                "translated_bytes": size.translated,
                "jited_bytes": size.jited,
            })
        })
        .collect();
    let all = json!({
        "machine": machine(),
        "rounds": rounds,
        "packets_per_round": packets,
        "cases": cases,
        "programs": programs,
    });
    println!("{}", serde_json::to_string_pretty(&all)?);
    Ok(())
}

/// Kernel and processor.
pub(super) fn machine() -> String {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!("Linux {kernel}, {}", model.map_or("unknown processor", |(_, model)| model))
}
