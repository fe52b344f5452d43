#!/usr/bin/env bash
# Makes a CA, and the two Secrets that the agents and the server want, with openssl.
#
#   deploy/make-certs.sh DIR | kubectl apply -f -
#
# DIR keeps the CA and its key: it is made, readable by its owner only, and holds what can sign new
# certificates, so keep it somewhere safe and out of the cluster. With a CA in DIR already, that one is
# used: so are certificates renewed. Secrets go to standard output, everything else to standard error.
set -euo pipefail

usage="usage: deploy/make-certs.sh [--namespace NAMESPACE] [--days DAYS] DIR"
namespace=orb8-system
days=365
dir=
while [ $# -gt 0 ]; do
    case "$1" in
        --namespace) namespace=${2:?$usage} && shift 2 ;;
        --days) days=${2:?$usage} && shift 2 ;;
        -*) echo "$usage" >&2 && exit 64 ;;
        *) [ -z "$dir" ] || { echo "$usage" >&2 && exit 64; }
           dir=$1 && shift ;;
    esac
done
[ -n "$dir" ] || { echo "$usage" >&2 && exit 64; }
command -v openssl >/dev/null || { echo "make-certs: no openssl on the PATH" >&2 && exit 1; }
if [ -t 1 ]; then
    echo "make-certs: private keys would go to this terminal; pipe me into 'kubectl apply -f -'" >&2
    exit 64
fi

umask 077
mkdir -p "$dir"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

new_key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt; }

if ! [ -e "$dir/ca.key" ]; then
    new_key >"$work/ca.key"
    openssl req -x509 -new -key "$work/ca.key" -sha256 -days 3650 -subj /CN=orb8-ca \
        -addext basicConstraints=critical,CA:TRUE,pathlen:0 \
        -addext keyUsage=critical,keyCertSign,cRLSign -out "$work/ca.crt"
    mv "$work/ca.crt" "$work/ca.key" "$dir"
    echo "make-certs: a new CA is in $dir" >&2
fi

# issue NAME USAGES [MORE SUBJECT NAMES]
issue() {
    local name=$1 usages=$2 more=${3-}
    local names="DNS:$name,DNS:$name.$namespace,DNS:$name.$namespace.svc"
    names+=",DNS:$name.$namespace.svc.cluster.local$more"
    new_key >"$work/$name.key"
    openssl req -new -key "$work/$name.key" -subj "/CN=$name" -out "$work/$name.csr"
    openssl x509 -req -in "$work/$name.csr" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" \
        -set_serial "0x$(openssl rand -hex 16)" -sha256 -days "$days" -out "$work/$name.crt" \
        -extfile <(printf '%s\n' basicConstraints=critical,CA:FALSE \
            keyUsage=critical,digitalSignature "extendedKeyUsage=$usages" "subjectAltName=$names") \
        2>/dev/null
}

secret() {
    local name=$1
    cat <<YAML
---
apiVersion: v1
kind: Secret
metadata:
  name: $name-tls
  namespace: $namespace
  labels:
    app.kubernetes.io/part-of: orb8
    app: $name
type: kubernetes.io/tls
data:
  tls.crt: $(base64 -w 0 <"$work/$name.crt")
  tls.key: $(base64 -w 0 <"$work/$name.key")
  ca.crt: $(base64 -w 0 <"$dir/ca.crt")
YAML
}

# Agents only serve: with this certificate nobody can ask another agent.
issue orb8-agent serverAuth
# The server serves people, by port-forward at localhost too, and is the agents' client.
issue orb8-server serverAuth,clientAuth ,DNS:localhost
secret orb8-agent
secret orb8-server
echo "make-certs: certificates for $days days; the CA for people is $dir/ca.crt" >&2
