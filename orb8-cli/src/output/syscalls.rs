//! The columns of system calls: of single ones, and of their counts.

use orb8_proto::{SyscallCount, SyscallEvent, SyscallOutcome};

use super::{
    columns::{Column, Place},
    flows::owner,
    value::{Value, enum_name},
};

/// Single calls, in the order of the tables.
pub(crate) static EVENTS: &[Column<SyscallEvent>] = &[
    column("timestamp_ns", "TIME", Place::Everywhere, 12, |call| Value::TimeNs(call.timestamp_ns)),
    column("node", "NODE", Place::Wide, 12, |call| Value::text(&call.node)),
    column("namespace", "NAMESPACE", Place::Everywhere, 12, |call| Value::text(&call.namespace)),
    column("pod", "POD", Place::People, 24, |call| {
        owner(&call.pod_name, &call.unit, call.attributed_by())
    }),
    column("pod_name", "POD-NAME", Place::Data, 24, |call| Value::text(&call.pod_name)),
    column("container", "CONTAINER", Place::Everywhere, 12, |call| Value::text(&call.container)),
    column("workload", "WORKLOAD", Place::Wide, 20, |call| Value::text(&call.workload)),
    column("attributed_by", "ATTRIBUTED-BY", Place::Data, 13, |call| {
        enum_name(call.attributed_by().as_str_name(), "ATTRIBUTED_BY_")
    }),
    column("pid", "PID", Place::Everywhere, 7, |call| Value::number(call.pid)),
    column("tid", "TID", Place::Wide, 7, |call| Value::number(call.tid)),
    column("comm", "COMM", Place::Everywhere, 15, |call| Value::text(&call.comm)),
    column("syscall", "SYSCALL", Place::Everywhere, 10, |call| Value::text(&call.syscall)),
    column("number", "NUMBER", Place::Data, 6, |call| Value::number(call.number)),
    column("weight", "WEIGHT", Place::Wide, 6, |call| Value::Number(call.weight)),
    column("error", "ERROR", Place::Wide, 10, |call| Value::text(&call.error)),
    column("result", "RESULT", Place::Data, 10, |call| signed(call.result)),
    column("duration_ns", "DURATION-NS", Place::Wide, 11, |call| {
        call.duration_ns.map_or(Value::Absent, Value::Number)
    }),
    column("detail", "DETAIL", Place::People, 40, detail),
    column("path", "PATH", Place::Data, 40, |call| Value::text(&call.path)),
    column("args", "ARGS", Place::Data, 40, |call| texts(&call.args)),
    column("address", "ADDRESS", Place::Data, 21, |call| Value::text(&call.address)),
    column("flags", "FLAGS", Place::Data, 20, |call| texts(&call.flags)),
    column("arguments", "ARGUMENTS", Place::Data, 40, |call| {
        Value::List(call.arguments.iter().map(|argument| Value::Number(*argument)).collect())
    }),
    column("cut", "CUT", Place::Data, 5, |call| Value::Flag(call.cut)),
    column("unread", "UNREAD", Place::Data, 6, |call| Value::Flag(call.unread)),
    column("pod_uid", "POD-UID", Place::Data, 36, |call| Value::text(&call.pod_uid)),
    column("unit", "UNIT", Place::Data, 24, |call| Value::text(&call.unit)),
    column("container_id", "CONTAINER-ID", Place::Data, 64, |call| Value::text(&call.container_id)),
];

/// A count, and the time that it is of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counted {
    pub count: SyscallCount,
    pub seconds: f64,
}

/// Counts, in the order of the tables.
pub(crate) static COUNTS: &[Column<Counted>] = &[
    column("node", "NODE", Place::Wide, 12, |row| Value::text(&row.count.node)),
    column("namespace", "NAMESPACE", Place::Everywhere, 12, |row| {
        Value::text(&row.count.namespace)
    }),
    column("pod", "POD", Place::People, 24, |row| {
        owner(&row.count.pod_name, &row.count.unit, row.count.attributed_by())
    }),
    column("pod_name", "POD-NAME", Place::Data, 24, |row| Value::text(&row.count.pod_name)),
    column("container", "CONTAINER", Place::Everywhere, 12, |row| {
        Value::text(&row.count.container)
    }),
    column("workload", "WORKLOAD", Place::Wide, 20, |row| Value::text(&row.count.workload)),
    column("attributed_by", "ATTRIBUTED-BY", Place::Wide, 13, |row| {
        enum_name(row.count.attributed_by().as_str_name(), "ATTRIBUTED_BY_")
    }),
    column("syscall", "SYSCALL", Place::Everywhere, 16, |row| Value::text(&row.count.syscall)),
    column("class", "CLASS", Place::Wide, 10, |row| Value::text(&row.count.class)),
    column("number", "NUMBER", Place::Data, 6, |row| Value::number(row.count.number)),
    column("calls", "CALLS", Place::Everywhere, 10, |row| Value::Number(row.count.calls)),
    column("calls_per_second", "CALLS/S", Place::People, 9, per_second),
    column("errors", "ERRORS", Place::People, 6, |row| of(row, |o| Value::Number(o.errors))),
    column("p50", "P50", Place::WidePeople, 9, |row| of(row, |o| duration(o.p50_ns))),
    column("p99", "P99", Place::People, 9, |row| of(row, |o| duration(o.p99_ns))),
    column("outcome", "OUTCOME", Place::Data, 40, |row| outcome(row.count.outcome.as_ref())),
    column("timestamp_ns", "LAST-SEEN", Place::Wide, 30, |row| {
        Value::TimeNs(row.count.timestamp_ns)
    }),
    column("pod_uid", "POD-UID", Place::Data, 36, |row| Value::text(&row.count.pod_uid)),
    column("unit", "UNIT", Place::Data, 24, |row| Value::text(&row.count.unit)),
    column("container_id", "CONTAINER-ID", Place::Data, 64, |row| {
        Value::text(&row.count.container_id)
    }),
];

const fn column<T>(
    name: &'static str,
    header: &'static str,
    place: Place,
    width: usize,
    get: for<'a> fn(&'a T) -> Value<'a>,
) -> Column<T> {
    Column { name, header, place, width, get }
}

fn texts(texts: &[String]) -> Value<'_> {
    Value::List(texts.iter().map(|text| Value::text(text)).collect())
}

fn signed(number: Option<i64>) -> Value<'static> {
    number.map_or(Value::Absent, Value::Signed)
}

/// What a call is about, as somebody would type it.
fn detail(call: &SyscallEvent) -> Value<'_> {
    let mut words = Vec::new();
    if !call.args.is_empty() {
        // What the program calls itself, its first argument, is nearly always its path.
        words.push(quoted(&call.path));
        words.extend(call.args.iter().skip(1).map(|argument| quoted(argument)));
    } else if !call.path.is_empty() {
        words.push(call.path.clone());
    }
    if !call.address.is_empty() {
        words.push(call.address.clone());
    }
    if !call.flags.is_empty() {
        words.push(call.flags.join("|"));
    }
    if call.cut {
        words.push("…".into());
    }
    if call.unread {
        words.push("<unread>".into());
    }
    if call.weight > 1 {
        words.push(format!("(1 of {})", call.weight));
    }
    Value::owned(words.join(" "))
}

/// An argument that a shell would take apart, in quotes.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:=,+@%^".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', "'\\''"))
}

fn per_second(row: &Counted) -> Value<'static> {
    if row.seconds <= 0.0 {
        return Value::Absent;
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = row.count.calls as f64 / row.seconds;
    Value::owned(format!("{rate:.1}"))
}

fn of(row: &Counted, value: fn(&SyscallOutcome) -> Value<'static>) -> Value<'static> {
    row.count.outcome.as_ref().map_or(Value::Absent, value)
}

/// Nanoseconds in the unit that people would choose.
pub(super) fn duration(ns: u64) -> Value<'static> {
    Value::owned(match ns {
        0 => return Value::Absent,
        1..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{} µs", ns / 1_000),
        1_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{} s", ns / 1_000_000_000),
    })
}

fn outcome(outcome: Option<&SyscallOutcome>) -> Value<'_> {
    let Some(outcome) = outcome else { return Value::Absent };
    let errors = outcome.errors_by_number.iter().map(|error| {
        Value::Map(vec![
            ("errno", Value::number(error.errno)),
            ("name", Value::text(&error.name)),
            ("count", Value::Number(error.count)),
        ])
    });
    Value::Map(vec![
        ("returned", Value::Number(outcome.returned)),
        ("errors", Value::Number(outcome.errors)),
        ("duration_ns", Value::Number(outcome.duration_ns)),
        ("latency", Value::List(outcome.latency.iter().map(|n| Value::Number(*n)).collect())),
        ("p50_ns", Value::Number(outcome.p50_ns)),
        ("p99_ns", Value::Number(outcome.p99_ns)),
        ("errors_by_number", Value::List(errors.collect())),
    ])
}

#[cfg(test)]
mod tests {
    use orb8_proto::AttributedBy;

    use super::*;
    use crate::output::{Format, Look, Printer, columns::select};

    fn event() -> SyscallEvent {
        SyscallEvent {
            namespace: "prod".into(),
            pod_name: "web-1".into(),
            container: "app".into(),
            pid: 4_711,
            comm: "sh\u{1b}[2J".into(),
            syscall: "execve".into(),
            weight: 1,
            path: "/bin/sh".into(),
            args: ["sh", "-c", "echo 'hi'"].map(String::from).to_vec(),
            timestamp_ns: 1_700_000_000_123_456_789,
            attributed_by: AttributedBy::Cgroup.into(),
            ..SyscallEvent::default()
        }
    }

    fn count() -> Counted {
        let count = SyscallCount {
            namespace: "prod".into(),
            pod_name: "web-1".into(),
            container: "app".into(),
            syscall: "openat".into(),
            class: "file".into(),
            calls: 1_205,
            ..SyscallCount::default()
        };
        Counted { count, seconds: 10.0 }
    }

    fn written<T>(all: &'static [Column<T>], format: Format, rows: &[T]) -> String {
        let columns = select(all, &[], format).unwrap();
        let mut out = Vec::new();
        let look = Look { format, headers: true, color: false };
        Printer::new(columns, look, &mut out).all(rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn fields_of(message: &str) -> Vec<&'static str> {
        let proto = include_str!("../../../orb8-proto/proto/orb8.proto");
        let message = proto.split(&format!("message {message} {{")).nth(1).unwrap();
        let lines = message.split("\n}").next().unwrap().lines();
        let lines = lines.filter_map(|line| line.split("//").next()?.split_once(" = "));
        let mut fields: Vec<_> =
            lines.filter_map(|(line, _)| line.split(' ').next_back()).collect();
        fields.sort_unstable();
        fields
    }

    fn names(json: &str) -> Vec<String> {
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        let mut names: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn the_data_formats_have_every_field_of_the_protocol_and_no_other() {
        let json = written(EVENTS, Format::Jsonl, &[event()]);
        assert_eq!(names(&json), fields_of("SyscallEvent"));
        let json = written(COUNTS, Format::Jsonl, &[count()]);
        assert_eq!(names(&json), fields_of("SyscallCount"));
        let outcome = SyscallOutcome { p99_ns: 512, ..SyscallOutcome::default() };
        let row = SyscallCount { outcome: Some(outcome), ..count().count };
        let json = written(COUNTS, Format::Jsonl, &[Counted { count: row, seconds: 1.0 }]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(names(&json["outcome"].to_string()), fields_of("SyscallOutcome"));
    }

    #[test]
    fn a_program_is_shown_as_somebody_would_type_it_and_steers_no_terminal() {
        let table = written(EVENTS, Format::Table, &[event()]);
        assert!(table.contains(r"execve    /bin/sh -c 'echo '\\''hi'\\'''"), "{table}");
        assert!(table.contains(r"sh\u{1b}[2J") && !table.contains('\u{1b}'), "{table}");
        assert!(table.contains("22:13:20.123   prod        web-1   app         4711"), "{table}");
    }

    #[test]
    fn details_say_what_is_missing_and_what_a_record_stands_for() {
        let shown = |event: &SyscallEvent| detail(event).cell(super::super::value::Style::Short);
        let open = SyscallEvent {
            path: "/etc/passwd".into(),
            flags: vec!["O_RDONLY".into(), "O_CLOEXEC".into()],
            cut: true,
            ..SyscallEvent::default()
        };
        assert_eq!(shown(&open), "/etc/passwd O_RDONLY|O_CLOEXEC …");
        let read = SyscallEvent { weight: 100, unread: true, ..SyscallEvent::default() };
        assert_eq!(shown(&read), "<unread> (1 of 100)");
        let connect = SyscallEvent { address: "10.0.0.1:443".into(), ..SyscallEvent::default() };
        assert_eq!(shown(&connect), "10.0.0.1:443");
        assert_eq!(shown(&SyscallEvent::default()), "-");
    }

    #[test]
    fn counts_have_a_rate_and_what_is_not_watched_is_a_dash() {
        let table = written(COUNTS, Format::Table, &[count()]);
        assert!(table.contains("openat    1205    120.5     -        -"), "{table}");
        let outcome = SyscallOutcome { errors: 3, p99_ns: 4_096_000, ..SyscallOutcome::default() };
        let watched = SyscallCount { outcome: Some(outcome), ..count().count };
        let table = written(COUNTS, Format::Table, &[Counted { count: watched, seconds: 0.0 }]);
        assert!(table.contains("openat    1205    -         3        4 ms"), "{table}");
    }
}
