//! What `orb8-testpod` can perform: one enum, which the binary parses and this library writes as arguments.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One program that runs inside a pod. Servers run until they are stopped, all others end by themselves.
///
/// Traffic is IPv4 or IPv6 as the given addresses are.
#[derive(Clone, Debug, PartialEq, Serialize, Subcommand)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    /// Server. Do nothing: hold the namespace and the cgroup
    Hold(Hold),
    /// Server. Count what arrives by UDP
    UdpSink(UdpSink),
    /// Send an exact number of UDP datagrams
    UdpSend(UdpSend),
    /// Send an exact number of UDP datagrams to each of several addresses; SIGTERM ends it early, and it says how many
    UdpTalk(UdpTalk),
    /// Server. Send every datagram back
    UdpEcho(Bind),
    /// Server. Read TCP connections to their end and answer how many bytes that were (8 bytes, big endian)
    TcpSink(TcpSink),
    /// Send an exact number of bytes over one TCP connection and wait until the sink has read them
    TcpSend(TcpSend),
    /// Server. HTTP/1.1: `GET /bytes/N` answers N bytes
    HttpServer(Bind),
    /// GET from an `http-server`, again and again
    HttpClient(HttpClient),
    /// Server. DNS over UDP from a fixed list of names; others do not exist
    DnsServer(DnsServer),
    /// Resolve names at a `dns-server`, again and again
    DnsClient(DnsClient),
    /// Make many short flows, one after the other
    Flows(Flows),
    /// Server. Keep many UDP flows alive at once
    HoldFlows(HoldFlows),
    /// Make known numbers of system calls, see `known_calls`
    Calls(Calls),
    /// Run a command to its end, again and again
    Spawn(Spawn),
    /// Make calls that fail, and calls that take their time
    Endings(Endings),
    /// Become another command
    Exec(Exec),
}

/// See [`Program::Hold`].
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize)]
pub struct Hold {
    /// Kernel parameters of the own network namespace to set first, as `net.ipv4.ip_forward=1`
    #[arg(long)]
    pub sysctl: Vec<String>,
}

/// Where a server listens.
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct Bind {
    /// Address and port; port 0 takes a free one, and the ready line says which
    #[arg(long)]
    pub bind: SocketAddr,
}

/// See [`Program::UdpSink`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct UdpSink {
    /// Address and first port
    #[arg(long)]
    pub bind: SocketAddr,
    /// How many ports to listen on, counted from the first
    #[arg(long, default_value_t = 1)]
    pub ports: u16,
}

/// See [`Program::UdpSend`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct UdpSend {
    /// Where to send
    #[arg(long)]
    pub to: SocketAddr,
    /// How many datagrams
    #[arg(long)]
    pub packets: u64,
    /// Payload of each, in bytes
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// Datagrams per second; without it as fast as it goes
    #[arg(long)]
    pub pps: Option<u64>,
    /// Source port; without it the kernel chooses
    #[arg(long)]
    pub from_port: Option<u16>,
    /// Wait up to a second for a `udp-echo` to answer each datagram
    #[arg(long)]
    pub await_echo: bool,
}

/// See [`Program::UdpTalk`]. It ends when all that it has sent has left its network namespace.
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct UdpTalk {
    /// Where to send, in turn; IPv4 and IPv6 from the same socket
    #[arg(long, required = true)]
    pub to: Vec<SocketAddr>,
    /// How many datagrams to each address
    #[arg(long)]
    pub packets: u64,
    /// Payload of each, in bytes
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// Datagrams per second, over all addresses
    #[arg(long)]
    pub pps: u64,
    /// Source port; 0: the kernel chooses
    #[arg(long, default_value_t = 0)]
    pub from_port: u16,
    /// Then stay until SIGTERM
    #[arg(long)]
    pub stay: bool,
}

/// See [`Program::TcpSink`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct TcpSink {
    /// Address and first port
    #[arg(long)]
    pub bind: SocketAddr,
    /// How many ports to listen on, counted from the first
    #[arg(long, default_value_t = 1)]
    pub ports: u16,
}

/// See [`Program::TcpSend`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct TcpSend {
    /// A `tcp-sink`
    #[arg(long)]
    pub to: SocketAddr,
    /// How many bytes
    #[arg(long)]
    pub bytes: u64,
    /// Bytes per second; without it as fast as it goes
    #[arg(long)]
    pub rate: Option<u64>,
}

/// See [`Program::HttpClient`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct HttpClient {
    /// An `http-server`
    #[arg(long)]
    pub to: SocketAddr,
    /// How many requests
    #[arg(long)]
    pub requests: u64,
    /// Milliseconds between two of them
    #[arg(long, default_value_t = 0)]
    pub every: u64,
    /// Bytes to ask for
    #[arg(long, default_value_t = 1024)]
    pub size: u64,
    /// One connection for all requests, instead of one for each
    #[arg(long)]
    pub keep_alive: bool,
}

/// See [`Program::DnsServer`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct DnsServer {
    /// Address and port, usually 53
    #[arg(long)]
    pub bind: SocketAddr,
    /// A name it knows and its address, as `web.shop.svc.cluster.local=10.96.0.10`
    #[arg(long, value_parser = name_and_address)]
    pub record: Vec<String>,
}

/// See [`Program::DnsClient`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct DnsClient {
    /// A DNS server
    #[arg(long)]
    pub to: SocketAddr,
    /// Names to resolve in turn, A and AAAA each
    #[arg(long, required = true)]
    pub name: Vec<String>,
    /// How many queries
    #[arg(long)]
    pub requests: u64,
    /// Milliseconds between two of them
    #[arg(long, default_value_t = 0)]
    pub every: u64,
}

/// Transport of [`Flows`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Proto {
    /// Datagrams
    Udp,
    /// Connections that a `tcp-sink` answers
    Tcp,
}

/// How many distinct source ports one destination port gets before the next one is used: flow `i` goes from port
/// `10000 + i % 50000` to destination port `base + i / 50000`.
pub const SOURCE_PORTS: u32 = 50_000;

/// See [`Program::Flows`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct Flows {
    /// Address and first port of a sink; more than 50,000 flows use the ports after it
    #[arg(long)]
    pub to: SocketAddr,
    /// How many distinct flows
    #[arg(long)]
    pub count: u32,
    /// Datagrams, or writes of a connection, in each
    #[arg(long, default_value_t = 1)]
    pub packets_per_flow: u32,
    /// Payload of each datagram or write, in bytes
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// udp or tcp
    #[arg(long, value_enum, default_value_t = Proto::Udp)]
    pub proto: Proto,
    /// Spread the flows over this many destination ports, instead of as few as possible
    #[arg(long)]
    pub ports: Option<u16>,
}

/// See [`Program::HoldFlows`]. It is ready when every flow has sent its first datagram.
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct HoldFlows {
    /// Address and first port of a `udp-sink`
    #[arg(long)]
    pub to: SocketAddr,
    /// How many flows
    #[arg(long)]
    pub count: u32,
    /// Datagrams per second over all flows together
    #[arg(long)]
    pub pps: u64,
    /// Payload of each datagram, in bytes
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// Spread the flows over this many destination ports: that many fewer sockets
    #[arg(long, default_value_t = 1)]
    pub ports: u16,
}

/// See [`Program::Calls`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct Calls {
    /// How many threads make them at once
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// How often each thread makes the first one; the second one twice as often, and so on
    #[arg(long)]
    pub times: u32,
    /// Only this call
    #[arg(long)]
    pub only: Option<String>,
    /// Calls a second of each thread; without it as fast as it goes
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub per_second: Option<u32>,
}

/// See [`Program::Spawn`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct Spawn {
    /// How often
    #[arg(long)]
    pub times: u32,
    /// The command and its arguments; `{}` is how often it was run before
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// See [`Program::Endings`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct Endings {
    /// How often each is made: `getsid` of nobody, which is `ESRCH`; the opening of `path`, which is
    /// `ENOENT`; and a sleep
    #[arg(long)]
    pub times: u32,
    /// A file that is not there
    #[arg(long)]
    pub path: String,
    /// How long each sleep is, in milliseconds
    #[arg(long)]
    pub sleep_ms: u64,
}

/// See [`Program::Exec`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct Exec {
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// What a program did. Fields that do not apply to it are zero.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct Summary {
    /// Datagrams sent, or received by a sink.
    pub packets: u64,
    /// Payload bytes sent, or received by a sink or an HTTP client.
    pub bytes: u64,
    /// Distinct flows or connections, as made by a client or seen by a sink.
    pub flows: u64,
    /// Requests that were answered.
    pub replies: u64,
}

impl Program {
    /// Whether it runs until it is stopped; such a program prints a ready line.
    #[must_use]
    pub fn is_server(&self) -> bool {
        matches!(
            self,
            Self::Hold(_)
                | Self::UdpSink(_)
                | Self::UdpEcho(_)
                | Self::TcpSink(_)
                | Self::HttpServer(_)
                | Self::DnsServer(_)
                | Self::HoldFlows(_)
        )
    }

    /// Whether it ends without being told.
    #[must_use]
    pub fn ends(&self) -> bool {
        !self.is_server() && !matches!(self, Self::UdpTalk(talk) if talk.stay)
    }

    /// A [`Program::UdpSink`] on one port of `address`; 0 takes a free one.
    #[must_use]
    pub fn udp_sink(address: impl Into<IpAddr>, port: u16) -> Self {
        Self::UdpSink(UdpSink { bind: SocketAddr::new(address.into(), port), ports: 1 })
    }

    /// A [`Program::UdpSend`] as fast as it goes.
    #[must_use]
    pub fn udp_send(to: SocketAddr, packets: u64, size: usize) -> Self {
        Self::UdpSend(UdpSend { to, packets, size, pps: None, from_port: None, await_echo: false })
    }

    /// A [`Program::TcpSink`] on one port of `address`; 0 takes a free one.
    #[must_use]
    pub fn tcp_sink(address: impl Into<IpAddr>, port: u16) -> Self {
        Self::TcpSink(TcpSink { bind: SocketAddr::new(address.into(), port), ports: 1 })
    }

    /// A [`Program::TcpSend`] as fast as it goes.
    #[must_use]
    pub fn tcp_send(to: SocketAddr, bytes: u64) -> Self {
        Self::TcpSend(TcpSend { to, bytes, rate: None })
    }

    /// The command line that the binary parses back into the same program.
    ///
    /// # Errors
    /// When a field has a form that no argument can carry; no field of today has.
    pub fn arguments(&self) -> Result<Vec<String>> {
        if let Self::Exec(exec) = self {
            let command = exec.command.iter().cloned();
            return Ok(["exec", "--"].map(String::from).into_iter().chain(command).collect());
        }
        if let Self::Spawn(spawn) = self {
            let times = spawn.times.to_string();
            let head = ["spawn", "--times", &times, "--"].map(String::from);
            return Ok(head.into_iter().chain(spawn.command.iter().cloned()).collect());
        }
        let Value::Object(tagged) = serde_json::to_value(self)? else {
            bail!("{self:?} has no name");
        };
        let (name, fields) = tagged.into_iter().next().context("a program without a name")?;
        let mut arguments = vec![name];
        for (field, value) in fields.as_object().context("a program without fields")? {
            let flag = format!("--{}", field.replace('_', "-"));
            match value {
                Value::Null | Value::Bool(false) => {}
                Value::Bool(true) => arguments.push(flag),
                Value::Array(items) => {
                    for item in items {
                        arguments.extend([flag.clone(), scalar(item)?]);
                    }
                }
                one => arguments.extend([flag, scalar(one)?]),
            }
        }
        Ok(arguments)
    }
}

fn scalar(value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => bail!("{other} is neither text nor a number"),
    }
}

fn name_and_address(text: &str) -> Result<String, String> {
    match text.split_once('=').map(|(name, address)| (name, address.parse::<IpAddr>())) {
        Some((name, Ok(_))) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("expected NAME=ADDRESS, such as web.shop=10.96.0.10".to_owned()),
    }
}
