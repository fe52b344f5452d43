//! `orb8 advise`: what to configure, by what was seen.

use std::fs;

use anyhow::Context as _;
use orb8_proto::SyscallProfileQuery;

use super::node_need;
use crate::{
    answers::{self, Answers},
    args::{AdviseSeccompArgs, Cli},
    client::{Session, answer, question},
    exit::{Exit, Failure},
    notes::Notes,
    output::print_bytes,
    seccomp::{self, Advice},
    standalone::Purpose,
    target::{Need, Needs},
};

pub(super) async fn seccomp(
    cli: &Cli,
    args: &AdviseSeccompArgs,
    notes: &Notes,
) -> Result<Exit, Failure> {
    let duration = args.duration.map(|_| Need {
        option: "--duration",
        does: "is the time to watch in standalone mode; an agent that runs has watched already",
    });
    let needs = Needs { server: node_need(args.node.as_ref()), standalone: duration };
    let target = Session::target(cli, &args.agent, needs).await?;
    let mut session =
        Session::open(&target, &cli.global.connection, &args.agent, Purpose::Watch, notes).await?;
    if session.is_local() {
        let time = args.duration.unwrap_or(args.min_time);
        notes.info(&format!("watching for {}", humantime::format_duration(time)));
        tokio::select! {
            () = tokio::time::sleep(time) => (),
            () = session.interrupt.requested() => {
                notes.info("interrupted: the profile is of the time until now");
            }
        }
    }
    let query = SyscallProfileQuery {
        namespace: args.namespace.clone().unwrap_or_default(),
        pod_name: args.pod.clone(),
        container: args.container.clone().unwrap_or_default(),
        node: args.node.clone().unwrap_or_default(),
    };
    let mut client = session.client.clone();
    let call = async { Ok(client.get_syscall_profile(question(query)).await?.into_inner()) };
    let response = answer(&session.peer, call).await;
    session.close(notes).await;
    let response = response?;
    let answers = Answers::of_many_or_one(&response.nodes, &response.node);
    let advice = seccomp::advise(&response.profiles, args.min_time);
    if advice.is_err() {
        // Whoever is missing may have it.
        answers.tell(notes);
    }
    let mut advice = advice.map_err(Failure::Usage)?;
    let missing = answers
        .missing
        .iter()
        .map(|answer| format!("{}: containers there may call more", answers::text(answer)));
    advice.doubts.extend(missing);
    let exit = conclude(&advice, args, notes)?;
    Ok(if answers.whole() { exit } else { Exit::Partial })
}

fn conclude(advice: &Advice, args: &AdviseSeccompArgs, notes: &Notes) -> Result<Exit, Failure> {
    for doubt in &advice.doubts {
        notes.warning(doubt);
    }
    if !advice.doubts.is_empty() && !args.force {
        return Err(anyhow::anyhow!(
            "no profile for {}, as something may be missing in it: a workload that calls it would \
             break. Watch it from its start on, and for longer; or say --force",
            advice.of
        )
        .into());
    }
    let mut text = advice.profile();
    text.push('\n');
    match &args.output {
        None => print_bytes(text.as_bytes()).map_err(Failure::output)?,
        Some(path) => {
            fs::write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
            notes.info(&format!("{}: {}", path.display(), advice.summary()));
        }
    }
    Ok(Exit::Complete)
}
