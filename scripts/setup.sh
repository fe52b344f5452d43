#!/usr/bin/env bash
# Installs what building, testing and demonstrating orb8 needs and this machine lacks.
# Says nothing where nothing is missing; `--check` only lists what is missing and exits 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# rustup's cargo before Debian's; and where Debian keeps bpftool, ip and nft.
PATH=${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH:/usr/sbin:/sbin
export LC_ALL=C # the output of apt-cache is read below

check_only=false
case "${1-}" in
    '') ;;
    --check) check_only=true ;;
    *)
        echo "usage: scripts/setup.sh [--check]" >&2
        exit 64
        ;;
esac

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Packages that are there as soon as their command is, whoever brought it.
commands=(gcc:gcc make:make git:git ip:iproute2 nsenter:util-linux nft:nftables ps:procps bpftool:bpftool
    containerd:containerd runc:runc)
# Packages without a command of their own.
libraries=(libc6-dev ca-certificates containernetworking-plugins)
# rustc with a precompiled core library for BPF, and the llc of its LLVM.
bpf_compiler=(rustc-web cargo-web libstd-rust-web-dev-bpf rust-web-llvm)

# A BPF compiler may also be a rustup toolchain with rust-src, or another machine's object.
bpf_compiler_elsewhere() {
    local sysroot
    [ -z "${ORB8_BPF_OBJECTS-}${ORB8_BPF_RUSTC-}" ] || return 0
    have rustc && sysroot=$(rustc --print sysroot 2>/dev/null) || return 1
    [ -e "$sysroot/lib/rustlib/src/rust/library/Cargo.lock" ] || return 1
    compgen -G "$sysroot/lib/rustlib/*/bin/llc" >/dev/null
}

missing_packages() {
    local entry package
    for entry in "${commands[@]}"; do
        have "${entry%%:*}" || echo "${entry#*:}"
    done
    for package in "${libraries[@]}"; do
        installed "$package" || echo "$package"
    done
    for package in "${bpf_compiler[@]}"; do
        installed "$package" || bpf_compiler_elsewhere || echo "$package"
    done
}

# Prints what is wrong with the Rust toolchain for user space, or nothing.
toolchain_problem() {
    local wanted got
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    if ! have cargo || ! have rustc; then
        echo "no cargo on the PATH; orb8 needs Rust $wanted or newer: https://rustup.rs"
        return
    fi
    # Asked for separately: a cargo of one origin in front of a rustc of another is common.
    for tool in cargo rustc; do
        got=$("$tool" --version 2>/dev/null | cut -d ' ' -f 2 | cut -d - -f 1)
        if [ "$(printf '%s\n' "$wanted" "${got:-0}" | sort -V | head -n 1)" != "$wanted" ]; then
            echo "$tool is ${got:-broken}, orb8 needs $wanted or newer: rustup update stable"
            return
        fi
    done
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

candidate() { [[ $(apt-cache policy "$1" 2>/dev/null) == *"  Candidate: "[!\(]* ]]; }

install_packages() {
    local apt=(apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300) log package
    local wanted=("$@") packages=()
    if ! have apt-get; then
        fail "no apt-get here. Install what these Debian packages hold by hand: ${wanted[*]}"
    fi
    if [ "$(id -u)" != 0 ] && ! have sudo; then
        fail "not root, and no sudo. As root, run: apt-get update && apt-get install -y --no-install-recommends ${wanted[*]}"
    fi
    log=$(mktemp)
    # shellcheck disable=SC2064  # expanded now: `log` is local to this function
    trap "rm -f '$log'" EXIT
    # One broken third-party source must not stop an installation that does not need it.
    as_root "${apt[@]}" update >"$log" 2>&1 || say "warning: apt-get update: $(tail -n 1 "$log")"

    for package in "${wanted[@]}"; do
        if candidate "$package"; then
            packages+=("$package")
        elif [ "$package" = bpftool ]; then
            packages+=(linux-tools-common "linux-tools-$(uname -r)") # Ubuntu before 25.04
        elif [[ " ${bpf_compiler[*]} " == *" $package "* ]]; then
            fail "no package $package here, so no BPF compiler. On Debian 12 enable bookworm-security; elsewhere: rustup component add rust-src llvm-tools"
        else
            fail "no package $package in the configured apt sources"
        fi
    done
    if ! as_root env DEBIAN_FRONTEND=noninteractive \
        "${apt[@]}" install -y --no-install-recommends "${packages[@]}" >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        fail "apt-get install failed: ${packages[*]}"
    fi
    say "installed ${packages[*]}"
}

# Helpful and not needed: containers often may not mount.
mount_if_missing() {
    local type=$1 dir=$2 run=()
    if grep -q " $dir $type " /proc/mounts || ! [ -d "$dir" ]; then return; fi
    if [ "$(id -u)" != 0 ]; then
        have sudo || return 0
        run=(sudo -n)
    fi
    if "${run[@]}" mount -t "$type" "$type" "$dir" >/dev/null 2>&1 </dev/null; then
        say "mounted $type on $dir"
    fi
}

mapfile -t missing < <(missing_packages)
if $check_only; then
    problem=$(toolchain_problem)
    [ "${#missing[@]}" = 0 ] || printf 'missing package: %s\n' "${missing[@]}"
    [ -z "$problem" ] || echo "missing toolchain: $problem"
    [ "${#missing[@]}" = 0 ] && [ -z "$problem" ]
    exit
fi

[ "${#missing[@]}" = 0 ] || install_packages "${missing[@]}"
mount_if_missing tracefs /sys/kernel/tracing
mount_if_missing bpf /sys/fs/bpf
problem=$(toolchain_problem) # last: the packages above bring a cargo where there was none
[ -z "$problem" ] || fail "$problem"
