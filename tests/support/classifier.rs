//! Classifiers of others, written in instructions of the eBPF machine (RFC 9669).

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        tc::{NlOptions, TcAttachOptions, qdisc_add_clsact},
    },
};

/// The name of [`Classifier::dropper`]'s program in the kernel.
pub const DROPPER: &str = "drop_port";
const TAGGER: &str = "push_vlan";

/// Where a [`Classifier`] is attached.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// By TCX, before all others there.
    First,
    /// By TCX, behind all others there.
    Last,
    /// On clsact, which is made if it is not there, at this priority.
    Clsact(u16),
}

/// An attached classifier. It has to be attached and dropped on a thread of the interface's
/// network namespace, where dropping it detaches.
pub struct Classifier {
    _ebpf: Ebpf,
}

impl Classifier {
    /// Drops UDP over IPv4 to `port` at one hook of `interface`, and leaves the rest to others.
    pub fn dropper(interface: &str, hook: TcAttachType, place: Place, port: u16) -> Result<Self> {
        Self::attach((DROPPER, &drops_udp_to(port)), interface, hook, place)
    }

    /// Puts what `interface` sends into a VLAN.
    pub fn tagger(interface: &str, vlan: u16) -> Result<Self> {
        let program = (TAGGER, pushes_vlan(vlan));
        Self::attach((program.0, &program.1), interface, TcAttachType::Egress, Place::First)
    }

    fn attach(
        (name, instructions): (&str, &[Instruction]),
        interface: &str,
        hook: TcAttachType,
        place: Place,
    ) -> Result<Self> {
        let mut ebpf = Ebpf::load(&object(name, instructions))?;
        let program = ebpf.program_mut(name).context("the object has no program")?;
        let program: &mut SchedClassifier = program.try_into()?;
        program.load()?;
        let options = match place {
            Place::First => TcAttachOptions::TcxOrder(LinkOrder::first()),
            Place::Last => TcAttachOptions::TcxOrder(LinkOrder::last()),
            Place::Clsact(priority) => {
                // It may be there already, which the next step finds out.
                let _made = qdisc_add_clsact(interface);
                TcAttachOptions::Netlink(NlOptions { priority, ..NlOptions::default() })
            }
        };
        program.attach_with_options(interface, hook, options)?;
        Ok(Self { _ebpf: ebpf })
    }
}

/// Operation, registers (source, destination), jump, operand.
type Instruction = (u8, u8, i16, i32);

const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const PACKET_BYTE: u8 = 0x30;
const PACKET_HALF_WORD: u8 = 0x28;
const JUMP_IF_NOT: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

const TC_ACT_SHOT: i32 = 2;
const TC_ACT_UNSPEC: i32 = -1;

fn drops_udp_to(port: u16) -> [Instruction; 11] {
    // Offsets in an Ethernet frame with an IPv4 header without options.
    const ETHERTYPE: i32 = 12;
    const PROTOCOL: i32 = 23;
    const DESTINATION_PORT: i32 = 36;
    [
        (MOVE_REGISTER, 0x16, 0, 0), // the context belongs in r6
        (PACKET_HALF_WORD, 0, 0, ETHERTYPE),
        (JUMP_IF_NOT, 0, 6, 0x0800),
        (PACKET_BYTE, 0, 0, PROTOCOL),
        (JUMP_IF_NOT, 0, 4, 17),
        (PACKET_HALF_WORD, 0, 0, DESTINATION_PORT),
        (JUMP_IF_NOT, 0, 2, port.into()),
        (MOVE, 0, 0, TC_ACT_SHOT),
        (EXIT, 0, 0, 0),
        (MOVE, 0, 0, TC_ACT_UNSPEC),
        (EXIT, 0, 0, 0),
    ]
}

fn pushes_vlan(vlan: u16) -> [Instruction; 5] {
    const BPF_SKB_VLAN_PUSH: i32 = 18;
    [
        (MOVE, 2, 0, 0x8100_u16.to_be().into()),
        (MOVE, 3, 0, vlan.into()),
        (CALL, 0, 0, BPF_SKB_VLAN_PUSH),
        (MOVE, 0, 0, TC_ACT_UNSPEC),
        (EXIT, 0, 0, 0),
    ]
}

fn encode(instructions: &[Instruction]) -> Vec<u8> {
    let bytes = instructions.iter().flat_map(|(operation, registers, jump, operand)| {
        let mut bytes = vec![*operation, *registers];
        bytes.extend(jump.to_le_bytes());
        bytes.extend(operand.to_le_bytes());
        bytes
    });
    bytes.collect()
}

/// A program as a relocatable object (ELF-64, little endian): code, symbols, names.
fn object(program: &str, instructions: &[Instruction]) -> Vec<u8> {
    const HEADER: usize = 64;
    const SYMBOL: usize = 24;
    let code = encode(instructions);
    let names = format!("\0classifier\0.symtab\0.strtab\0{program}\0").into_bytes();
    let name = |wanted: &str| {
        let at = names.windows(wanted.len()).position(|w| w == wanted.as_bytes()).unwrap_or(0);
        u32::try_from(at).unwrap_or(0)
    };
    let (symbols_at, names_at) = (HEADER + code.len(), HEADER + code.len() + 2 * SYMBOL);
    let sections_at = (names_at + names.len()).next_multiple_of(8);

    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([1, 0, 247, 0, 1, 0, 0, 0]); // relocatable, for the eBPF machine
    elf.extend([0; 16]); // no entry, no segments
    elf.extend((sections_at as u64).to_le_bytes());
    elf.extend([0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 64, 0, 4, 0, 3, 0]); // 4 sections, names in the last
    elf.extend(&code);
    elf.extend([0; SYMBOL]);
    elf.extend(name(program).to_le_bytes());
    elf.extend([0x12, 0, 1, 0]); // a global function in section 1
    elf.extend([0; 8]);
    elf.extend((code.len() as u64).to_le_bytes());
    elf.extend(&names);
    elf.resize(sections_at, 0);

    elf.extend([0; 64]);
    // Name, type, flags, place, length, linked section, information, alignment, length of an entry.
    let sections = [
        (name("classifier"), 1_u32, 6_u64, HEADER, code.len(), 0_u32, 0_u32, 8_u64, 0),
        (name(".symtab"), 2, 0, symbols_at, 2 * SYMBOL, 3, 1, 8, SYMBOL),
        (name(".strtab"), 3, 0, names_at, names.len(), 0, 0, 1, 0),
    ];
    for (name, kind, flags, at, length, link, info, alignment, entry) in sections {
        elf.extend(name.to_le_bytes());
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        elf.extend([0; 8]);
        elf.extend((at as u64).to_le_bytes());
        elf.extend((length as u64).to_le_bytes());
        elf.extend(link.to_le_bytes());
        elf.extend(info.to_le_bytes());
        elf.extend(alignment.to_le_bytes());
        elf.extend((entry as u64).to_le_bytes());
    }
    elf
}
