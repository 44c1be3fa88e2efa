#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs a cluster of three nodes on this machine until Ctrl-C: a MariaDB and a Redis of its own, and bin/mqim three times.
# Everything is on loopback and under the folder given, which is kept: started again, the cluster goes on where it was.
#
#   scripts/cluster.sh data/cluster
#
# Node n (1, 2, 3) has MQTT on 1882+n, WebSocket on 8082+n and HTTP on 8089+n; MariaDB is on 13306, Redis on 16379. Other
# ports: MQTT=…, WS=…, HTTP=… (of the first node), DB=…, REDIS=…; another binary: MQIM=….
set -euo pipefail

cd "$(dirname "$0")/.."
dir=${1:-data/cluster}
mkdir -p "$dir/tmp"
dir=$(cd "$dir" && pwd)
mqtt=${MQTT:-1883} ws=${WS:-8083} http=${HTTP:-8090} db=${DB:-13306} redis=${REDIS:-16379}

for tool in mariadbd mariadb-install-db redis-server; do
    command -v "$tool" >/dev/null || { echo "cluster: $tool is missing: apt-get install mariadb-server redis-server" >&2; exit 1; }
done

pids=() names=()
run() { # name command…: in the background, its output in a file
    local name=$1
    shift
    "$@" >>"$dir/$name.log" 2>&1 &
    pids+=($!) names+=("$name")
}
stop() {
    trap - EXIT INT TERM
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do # nodes before what they need
        kill "${pids[i]}" 2>/dev/null || true
        wait "${pids[i]}" 2>/dev/null || true
    done
}
trap stop EXIT
trap 'exit 130' INT TERM

until_ready() { # what command…
    local what=$1
    shift
    for ((i = 0; i < 300; i++)); do
        "$@" >/dev/null 2>&1 && return
        for j in "${!pids[@]}"; do
            kill -0 "${pids[j]}" 2>/dev/null || { echo "cluster: ${names[j]} has ended, see $dir/${names[j]}.log" >&2; tail -n 5 "$dir/${names[j]}.log" >&2; exit 1; }
        done
        sleep 0.1
    done
    echo "cluster: $what does not answer, see $dir" >&2
    exit 1
}

as=()
[ "$(id -u)" = 0 ] && as=(--user=root)
sock=$(mktemp -u "${TMPDIR:-/tmp}/mqim-XXXXXX.sock") # a socket's path is short
if [ ! -d "$dir/mariadb/mysql" ]; then
    echo "cluster: making a database in $dir/mariadb"
    mariadb-install-db --no-defaults "${as[@]}" --datadir="$dir/mariadb" --tmpdir="$dir/tmp" --auth-root-authentication-method=normal \
        --skip-test-db >"$dir/mariadb.log" 2>&1 || { cat "$dir/mariadb.log" >&2; rm -rf "$dir/mariadb"; exit 1; }
fi
# The binary log, synced at each commit, is what a replica and a restore to a moment need.
run mariadb mariadbd --no-defaults "${as[@]}" --datadir="$dir/mariadb" --tmpdir="$dir/tmp" --socket="$sock" --bind-address=127.0.0.1 --port=$db \
    --log-bin --server-id=1 --binlog-format=ROW --sync-binlog=1 --innodb-flush-log-at-trx-commit=1 --max-allowed-packet=64M
run redis redis-server --bind 127.0.0.1 --port $redis --save '' --appendonly no --dir "$dir"
until_ready mariadb mariadb --no-defaults --socket="$sock" -u root -e 'SELECT 1'
until_ready redis redis-cli -p $redis ping
mariadb --no-defaults --socket="$sock" -u root -e "
    CREATE DATABASE IF NOT EXISTS mqim;
    CREATE USER IF NOT EXISTS mqim@'127.0.0.1' IDENTIFIED BY 'secret';
    GRANT ALL ON mqim.* TO mqim@'127.0.0.1'"

ready() { # port: /readyz answers 200
    exec 3<>"/dev/tcp/127.0.0.1/$1" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && grep -q '^HTTP/1.. 200' <&3
}

for n in 1 2 3; do
    cat >"$dir/node$n.yaml" <<EOF
node: {name: node$n}
listeners:
  - {name: mqtt, type: tcp, address: "127.0.0.1:$((mqtt + n - 1))"}
  - {name: ws, type: ws, address: "127.0.0.1:$((ws + n - 1))", path: /mqtt}
http: {address: "127.0.0.1:$((http + n - 1))"}
store:
  driver: mysql
  mysql: {dsn: "mqim:secret@tcp(127.0.0.1:$db)/mqim"}
cluster:
  redis: {addresses: ["127.0.0.1:$redis"]}
EOF
    run "node$n" "${MQIM:-./bin/mqim}" serve --config "$dir/node$n.yaml"
    until_ready "node$n" ready $((http + n - 1))
    echo "cluster: node$n is ready: MQTT on 127.0.0.1:$((mqtt + n - 1)), http://127.0.0.1:$((http + n - 1))/v1/endpoints, process ${pids[-1]}"
done
echo "cluster: running until Ctrl-C; logs and settings are in $dir"
while [ ${#pids[@]} -gt 0 ]; do # a node may be stopped and started by hand: the others go on
    sleep 1 & wait $!
    for j in "${!pids[@]}"; do
        kill -0 "${pids[j]}" 2>/dev/null || { echo "cluster: ${names[j]} has ended"; unset "pids[j]" "names[j]"; }
    done
    pids=("${pids[@]}") names=("${names[@]}")
done
