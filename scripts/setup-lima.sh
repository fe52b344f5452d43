#!/usr/bin/env bash
# Makes, or starts, the Linux machine in which orb8 is developed on macOS (.lima/orb8-dev.yaml).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
name=orb8-dev

if [ "$(uname -s)" = Linux ]; then
    echo "This is Linux already: scripts/setup.sh is what you want." >&2
    exit 1
fi
if ! command -v limactl >/dev/null 2>&1; then
    echo "limactl is missing: brew install lima" >&2
    exit 1
fi

if ! limactl list --quiet | grep -qx "$name"; then
    limactl create --tty=false --name="$name" --set ".param.checkout = \"$root\"" \
        "$root/.lima/$name.yaml"
fi
# Started already is fine; any other failure has been explained by limactl.
if [ "$(limactl list --format '{{.Status}}' "$name")" != Running ]; then
    limactl start --tty=false "$name"
fi
echo "ready: limactl shell $name sudo -i make -C '$root' demo"
