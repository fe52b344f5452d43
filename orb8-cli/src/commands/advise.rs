//! `orb8 advise`: what to configure, by what was seen.

use std::fs;

use anyhow::Context as _;
use orb8_proto::SyscallProfileQuery;

use crate::{
    args::{AdviseSeccompArgs, Cli},
    client::{Session, answer},
    exit::{Exit, Failure},
    notes::Notes,
    output::print_bytes,
    seccomp::{self, Advice},
    standalone::Purpose,
    target::Target,
};

pub(super) async fn seccomp(
    cli: &Cli,
    args: &AdviseSeccompArgs,
    notes: &Notes,
) -> Result<Exit, Failure> {
    let target = Session::target(cli, &args.agent)?;
    if let (Target::Server { .. }, Some(_)) = (&target, args.duration) {
        return Err(Failure::Usage(
            "--duration is the time to watch in standalone mode; an agent has watched already"
                .into(),
        ));
    }
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
        ..SyscallProfileQuery::default()
    };
    let mut client = session.client.clone();
    let call = async { Ok(client.get_syscall_profile(query).await?.into_inner()) };
    let profiles = answer(&session.peer, call).await;
    session.close(notes).await;
    let advice = seccomp::advise(&profiles?.profiles, args.min_time).map_err(Failure::Usage)?;
    conclude(&advice, args, notes)
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
