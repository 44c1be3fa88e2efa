#!/usr/bin/env bash
# Compares mqim with mochi-mqtt alone and, where it is installed, with mosquitto, on this machine.
#
# Each round starts each broker anew and runs the same scenario against it, one broker after the other, so that what
# else the machine does hits all of them alike. The table shows medians of the rounds. The exit code is 1 if mqim lost,
# damaged or reordered a message; a missed target is only said.
#
#   ./bench/run.sh
#   BENCH_ROUNDS=1 BENCH_SECONDS=5 BENCH_SCENARIOS="pairs im" ./bench/run.sh
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${BENCH_ROUNDS:-3}
seconds=${BENCH_SECONDS:-10}                # measured, of each run under load
warmup=${BENCH_WARMUP:-2}                   # seconds before that
PATH=$PATH:/usr/sbin
scenarios=${BENCH_SCENARIOS:-pairs im rate topics durable fanout group groups large conversations idle backlog sessions}
if [[ -z ${BENCH_SCENARIOS:-} ]] && command -v mariadbd >/dev/null; then scenarios+=" mysql"; fi
if [[ -z ${BENCH_SCENARIOS:-} ]] && command -v mariadbd >/dev/null && command -v redis-server >/dev/null; then scenarios+=" cluster"; fi
idle=${BENCH_IDLE:-10000}                   # connections
backlog=${BENCH_BACKLOG:-1000000}           # messages waiting
users=${BENCH_USERS:-10000}                 # for so many users
sessions=${BENCH_SESSIONS:-100000}          # durable sessions, each with a retained message
receivers=${BENCH_RECEIVERS:-1000}          # of a fan-out
members=${BENCH_MEMBERS:-100000}            # of a large group
online=${BENCH_ONLINE:-2000}                # of them
talks=${BENCH_CONVERSATIONS:-2000}          # of one user
version=${BENCH_VERSION:-3}                 # MQTT 3 (3.1.1) or 5
procs=${BENCH_PROCS:-1}                     # processors that the generator may use; the brokers use all
dir=${BENCH_DIR:-bin}                       # for data, which should be on a disk and not in memory
out=${BENCH_OUT:-bin/bench}                 # results: compare.json, and every run's report in raw/

mkdir -p "$dir" "$out/raw"
rm -f "$out"/raw/*.json
work=$(mktemp -d "$dir/bench-XXXXXX")
broker=                                     # pid of the broker that runs now
second=                                     # of the cluster's second node
database=                                   # of the database
redis=                                      # and of what connects the nodes
cleanup() {
  stop KILL
  stop_redis
  stop_database
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

note() { printf '%s\n' "$*" >&2; }
wants() { [[ " $scenarios " == *" $1 "* ]]; }

# stop ends the broker with a signal and waits for it.
stop() {
  local pid
  for pid in $second $broker; do
    kill "-${1:-TERM}" "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  broker= second=
}

stop_redis() {
  [[ -n $redis ]] || return 0
  kill -KILL "$redis" 2>/dev/null || true
  wait "$redis" 2>/dev/null || true
  redis=
}

# start_redis runs a Redis that keeps nothing on port $bus.
start_redis() {
  bus=$(free_port)
  redis-server --bind 127.0.0.1 --port "$bus" --save '' --appendonly no --dir "$work" >"$work/redis.log" 2>&1 &
  redis=$!
  local until=$((SECONDS + 20))
  until open "$bus"; do
    if ((SECONDS > until)) || ! kill -0 "$redis" 2>/dev/null; then
      note "redis did not start:"
      cat "$work/redis.log" >&2
      exit 1
    fi
    sleep 0.05
  done
}

# start_second runs another node of the cluster; its address is then in $there.
start_second() {
  there=$(free_port)
  local first=$http
  http=$(free_port)
  sed -e "s/127.0.0.1:$port/127.0.0.1:$there/" -e "s/127.0.0.1:$first/127.0.0.1:$http/" -e 's/node: {name: one}/node: {name: two}/' \
    "$work/mqim.yaml" >"$work/second.yaml"
  "$work/mqim" serve --config "$work/second.yaml" >"$work/second.log" 2>&1 &
  second=$!
  await ready
}

stop_database() {
  [[ -n $database ]] || return 0
  kill -KILL "$database" 2>/dev/null || true
  wait "$database" 2>/dev/null || true
  database=
  rm -rf "$work/mysql"
}

# start_database runs MariaDB with its defaults, which sync each commit, and a database mqim on port $sql.
start_database() {
  local me abs
  me=$(id -un)
  abs=$(realpath "$work")
  sql=$(free_port)
  mariadb-install-db --no-defaults --datadir="$abs/mysql" --auth-root-authentication-method=normal --skip-test-db --user="$me" >"$work/mysql.log" 2>&1 || {
    cat "$work/mysql.log" >&2
    exit 1
  }
  printf '%s\n' "CREATE DATABASE mqim;" "CREATE USER mqim@'127.0.0.1' IDENTIFIED BY 'bench';" "GRANT ALL ON mqim.* TO mqim@'127.0.0.1';" >"$work/mysql.sql"
  mariadbd --no-defaults --datadir="$abs/mysql" --socket="$abs/mysql/sock" --pid-file="$abs/mysql/pid" --user="$me" \
    --bind-address=127.0.0.1 --port="$sql" --skip-name-resolve --innodb-buffer-pool-size=256M --init-file="$abs/mysql.sql" \
    >>"$work/mysql.log" 2>&1 &
  database=$!
  local until=$((SECONDS + 60))
  until open "$sql"; do
    if ((SECONDS > until)) || ! kill -0 "$database" 2>/dev/null; then
      note "the database did not start:"
      cat "$work/mysql.log" >&2
      exit 1
    fi
    sleep 0.05
  done
}

# open is true if something listens on a port of this machine.
open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

free_port() {
  local p
  while p=$((10000 + RANDOM % 20000)); open "$p"; do :; done
  printf '%s' "$p"
}

# status prints the HTTP status of a path, 000 if nobody answers.
status() {
  local code=000
  { exec 3<>"/dev/tcp/127.0.0.1/$1" && printf 'GET %s HTTP/1.0\r\n\r\n' "$2" >&3 && read -r -t 5 _ code _ <&3; } 2>/dev/null || true
  { exec 3>&-; } 2>/dev/null || true
  printf '%s' "$code"
}

# await runs a command until it succeeds, for at most 60 s, and fails early if the broker has ended.
await() {
  local until=$((SECONDS + 60))
  until "$@"; do
    if ((SECONDS > until)) || ! kill -0 "$broker" 2>/dev/null; then
      note "the broker did not start:"
      cat "$work/broker.log" >&2
      exit 1
    fi
    sleep 0.01
  done
}

ready() { [[ $(status "$http" /readyz) == 200 ]]; }

# serve_mqim starts mqim on the data that is there.
serve_mqim() {
  "$work/mqim" serve --config "$work/mqim.yaml" >"$work/broker.log" 2>&1 &
  broker=$!
  await ready
}

# start runs a broker from nothing; its address is then in $port.
start() {
  port=$(free_port)
  case $1 in
  mqim)
    http=$(free_port)
    rm -rf "$work/data"
    store="driver: pebble, pebble: {path: \"$work/data\", sync: commit}"
    if [[ -n $database ]]; then store="driver: mysql, mysql: {dsn: \"mqim:bench@tcp(127.0.0.1:$sql)/mqim\"}"; fi
    nodes=
    if [[ -n $redis ]]; then nodes="redis: {addresses: [\"127.0.0.1:$bus\"]}"; fi
    cat >"$work/mqim.yaml" <<YAML
node: {name: one}
listeners:
  - {name: mqtt, type: tcp, address: "127.0.0.1:$port"}
http: {address: "127.0.0.1:$http"}
auth: {mode: trust}
store: {$store}
cluster: {$nodes}
limits: {sends_per_second: 0, connections: 0, connects_per_second: 0}
log: {level: warn, format: text}
YAML
    serve_mqim
    ;;
  mochi)
    "$work/mochi" --address "127.0.0.1:$port" >"$work/broker.log" 2>&1 &
    broker=$!
    await open "$port"
    ;;
  mosquitto)
    # No limit on what waits or is in flight, so that nothing is dropped; nothing is stored either.
    cat >"$work/mosquitto.conf" <<CONF
listener $port 127.0.0.1
allow_anonymous true
max_queued_messages 0
max_inflight_messages 0
persistence false
log_type error
CONF
    mosquitto -c "$work/mosquitto.conf" >"$work/broker.log" 2>&1 &
    broker=$!
    await open "$port"
    ;;
  esac
}

# load runs the generator against the broker that runs now and keeps its report: NAME BROKER ROUND SCENARIO FLAG…
load() {
  local file="$out/raw/$1.$2.$3.json"
  shift 3
  GOMAXPROCS=$procs "$work/mqim" bench "$@" --address "127.0.0.1:$port" --version "$version" --pid "$broker" \
    --json --quiet >"$file" 2>"$work/bench.log" || note "  $(tail -n 1 "$work/bench.log")"
  [[ -s $file ]] || {
    note "  no result: broker's log:"
    tail -n 20 "$work/broker.log" >&2
    exit 1
  }
}

# restart kills mqim, starts it again and notes how long it takes to be ready: NAME ROUND
restart() {
  stop KILL
  local begun took
  begun=$(date +%s%N)
  serve_mqim
  took=$((($(date +%s%N) - begun) / 1000000))
  printf '{"ready_seconds": %d.%03d}\n' $((took / 1000)) $((took % 1000)) >"$out/raw/$1.mqim.$2.json"
}

profile_of() { if [[ $1 == mqim ]]; then printf plain; else printf topic; fi; }
im_or_topic() { if [[ $1 == mqim ]]; then printf im; else printf topic; fi; }

go build -o "$work/mqim" ./cmd/mqim
go build -o "$work/mochi" ./bench/cmd/mochi
go build -o "$work/compare" ./bench/cmd/compare

brokers=(mqim mochi)
if command -v mosquitto >/dev/null; then brokers+=(mosquitto); else note "mosquitto is not installed: left out"; fi
case $(stat -f -c %T "$dir") in
tmpfs | ramfs) note "$dir is in memory: a sync costs nothing there, and mqim looks faster than it is (BENCH_DIR)" ;;
esac
ulimit -n "$(ulimit -Hn)"
if [[ $(ulimit -n) != unlimited ]] && wants idle && (($(ulimit -n) < idle + 200)); then
  idle=$(($(ulimit -n) - 200))
  note "only $idle idle connections: ulimit -n is $(ulimit -n)"
fi

for ((round = 1; round <= rounds; round++)); do
  if wants pairs; then
    for b in "${brokers[@]}"; do
      note "round $round of $rounds: 20 pairs, $b"
      start "$b"
      load pairs "$b" "$round" pairs --profile "$(profile_of "$b")" --duration "${seconds}s" --warmup "${warmup}s"
      stop
    done
  fi
  if wants im; then
    note "round $round of $rounds: 20 pairs in the IM profile, mqim"
    start mqim
    load im mqim "$round" pairs --profile im --duration "${seconds}s" --warmup "${warmup}s"
    stop
  fi
  if wants rate; then
    for b in "${brokers[@]}"; do
      note "round $round of $rounds: 5,000 messages a second, $b"
      start "$b"
      load rate "$b" "$round" pairs --profile "$(profile_of "$b")" --rate 5000 --duration "${seconds}s" --warmup "${warmup}s"
      stop
    done
  fi
  # Ordinary topics. A broker that keeps nothing is what sessions on disk are measured against, too.
  if wants topics; then
    for b in "${brokers[@]}"; do
      note "round $round of $rounds: 20 pairs on topics, $b"
      start "$b"
      load topics "$b" "$round" pairs --profile topic --duration "${seconds}s" --warmup "${warmup}s"
      stop
    done
  fi
  if wants durable; then
    note "round $round of $rounds: 20 pairs on topics, sessions that are kept, mqim"
    start mqim
    load durable mqim "$round" pairs --profile topic --clean=false --duration "${seconds}s" --warmup "${warmup}s"
    stop
  fi
  if wants fanout; then
    for b in "${brokers[@]}"; do
      note "round $round of $rounds: one topic, $receivers subscribers, $b"
      start "$b"
      load fanout "$b" "$round" fanout --profile topic --receivers "$receivers" --duration "${seconds}s" --warmup "${warmup}s"
      stop
      start "$b"
      load fanrate "$b" "$round" fanout --profile topic --receivers "$receivers" --rate 100 --duration "${seconds}s" --warmup "${warmup}s"
      stop
    done
  fi
  # A group of 500 is 499 receivers and the sender; others have a topic for each group.
  if wants group; then
    for b in "${brokers[@]}"; do
      note "round $round of $rounds: a group of 500, 20 messages a second, $b"
      start "$b"
      load group "$b" "$round" fanout --profile "$(im_or_topic "$b")" --receivers 499 --rate 20 --duration "${seconds}s" --warmup "${warmup}s"
      stop
    done
  fi
  if wants groups; then
    for b in "${brokers[@]}"; do
      note "round $round of $rounds: 10 groups of 500, $b"
      start "$b"
      load groups "$b" "$round" fanout --profile "$(im_or_topic "$b")" --groups 10 --receivers 499 --inflight 10 --ack-every 50 \
        --duration "${seconds}s" --warmup "${warmup}s"
      stop
    done
  fi
  if wants large; then
    for b in "${brokers[@]}"; do
      note "round $round of $rounds: a group of $members, $online of them connected, $b"
      start "$b"
      what=(--profile "$(im_or_topic "$b")" --receivers "$online" --rate 1 --duration "${seconds}s" --warmup "$((warmup + 2))s")
      if [[ $b == mqim ]]; then what+=(--members "$members"); fi
      load large "$b" "$round" fanout "${what[@]}"
      stop
    done
    note "round $round of $rounds: a group of 1,000, mqim"
    start mqim
    load lesser mqim "$round" fanout --profile im --members 1000 --receivers 10 --rate 1 --duration 1s --warmup 1s
    stop
  fi
  if wants conversations; then
    note "round $round of $rounds: a user with $talks conversations, mqim"
    start mqim
    what=(--conversations "$talks" --run "c$round")
    load talks mqim "$round" conversations --phase fill "${what[@]}"
    restart between "$round"
    load conversations mqim "$round" conversations --phase ask "${what[@]}"
    stop
  fi
  if wants idle; then
    for b in "${brokers[@]}"; do
      note "round $round of $rounds: $idle idle connections, $b"
      start "$b"
      load idle "$b" "$round" idle --profile "$(profile_of "$b")" --connections "$idle" --duration 5s
      stop KILL # ten thousand goodbyes are not measured
    done
  fi
  if wants backlog; then
    note "round $round of $rounds: $backlog messages for $users users who are away, mqim"
    start mqim
    what=(--profile plain --run "b$round" --users "$users" --count "$backlog")
    load fill mqim "$round" drain --phase fill "${what[@]}"
    restart restart "$round"
    load drain mqim "$round" drain --phase drain "${what[@]}"
    stop
  fi
  if wants sessions; then
    note "round $round of $rounds: a restart with $sessions durable sessions and as many retained messages, mqim"
    start mqim
    load sessions mqim "$round" sessions --connections "$sessions"
    restart again "$round"
    stop
  fi
  if wants mysql; then
    for p in plain im; do
      note "round $round of $rounds: 20 pairs on MariaDB, profile $p, mqim"
      start_database
      start mqim
      load "mysql$p" mqim "$round" pairs --profile "$p" --duration "${seconds}s" --warmup "${warmup}s"
      stop
      stop_database
    done
  fi
  if wants cluster; then
    for p in plain im; do
      note "round $round of $rounds: 20 pairs on a node of a cluster, and on two, profile $p, mqim"
      start_database
      start_redis
      start mqim
      load "one$p" mqim "$round" pairs --profile "$p" --duration "${seconds}s" --warmup "${warmup}s"
      start_second
      load "two$p" mqim "$round" pairs --profile "$p" --receivers-at "127.0.0.1:$there" --duration "${seconds}s" --warmup "${warmup}s"
      load "tworate$p" mqim "$round" pairs --profile "$p" --receivers-at "127.0.0.1:$there" --rate 1000 --duration "${seconds}s" --warmup "${warmup}s"
      stop
      stop_redis
      stop_database
    done
  fi
done

"$work/compare" -raw "$out/raw" -json "$out/compare.json"
