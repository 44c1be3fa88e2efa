#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the tests need and is missing: mosquitto's broker and clients, MariaDB and Redis from Debian, MQTT.js from npm. Without the
# right to install, or on another system, it says what is missing; the tests that need it are then skipped by name
# (in CI they fail).
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
for tool in mosquitto:mosquitto mosquitto_pub:mosquitto-clients mariadbd:mariadb-server redis-server:redis-server gcc:gcc; do
  PATH="$PATH:/usr/sbin" command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
done
# libc's headers come with gcc's recommendation only; the race detector needs them.
if [ ${#missing[@]} -gt 0 ]; then
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "installing ${missing[*]}"
    # The packages must not start their services: the tests start servers of their own, on free ports.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
      printf '#!/bin/sh\nexit 101\n' >"$policy"
      chmod +x "$policy"
      trap 'rm -f "$policy"' EXIT
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" libc6-dev >/dev/null
  else
    echo "not installed, and no right to install: ${missing[*]}" >&2
  fi
fi

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null
  else
    echo "not installed, and no right to install: nodejs npm" >&2
  fi
fi
if command -v npm >/dev/null && [ -f tests/mqttjs/package.json ] && [ ! -d tests/mqttjs/node_modules/mqtt ]; then
  npm ci --prefix tests/mqttjs --no-audit --no-fund --silent
fi
