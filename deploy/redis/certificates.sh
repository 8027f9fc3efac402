#!/usr/bin/env bash
# Makes a certificate authority of one's own and a certificate for the Redis of a fleet.
#   deploy/redis/certificates.sh queue.local 10.0.0.5     names and addresses under which clients reach it; writes into .
# The server needs redis.pem, redis-key.pem and ca.pem; clients need ca.pem only. Keep ca-key.pem elsewhere.
set -euo pipefail
umask 077

[ $# -gt 0 ] || { echo "usage: $0 NAME-OR-ADDRESS…" >&2; exit 2; }
names=""
for name in "$@"; do
    case $name in
        *[!0-9.]*) names+=",DNS:$name" ;;
        *) names+=",IP:$name" ;;
    esac
done

openssl req -x509 -newkey rsa:3072 -nodes -sha256 -days 3650 -subj "/CN=draftmill CA" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -keyout ca-key.pem -out ca.pem 2>/dev/null
openssl req -newkey rsa:3072 -nodes -subj "/CN=$1" -keyout redis-key.pem -out redis.csr 2>/dev/null
openssl x509 -req -in redis.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -sha256 -days 825 -out redis.pem \
    -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\nkeyUsage=digitalSignature' "${names#,}") 2>/dev/null
rm -f redis.csr ca.srl
chmod 644 ca.pem redis.pem
echo "wrote ca.pem, redis.pem and redis-key.pem for ${names#,}"
