#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fuzz.sh TIME: runs each fuzz target for so long.
set -euo pipefail
cd "$(dirname "$0")/.."
go list ./... | while read -r pkg; do
  dir=$(go list -f '{{.Dir}}' "$pkg")
  grep -hoE '^func (Fuzz[A-Za-z0-9_]+)' "$dir"/*_test.go 2>/dev/null | awk '{print $2}' | while read -r target; do
    echo "== $pkg $target"
    # Not a minute for each interesting input: where goroutines run, what is covered changes from run to run.
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" -fuzzminimizetime 1s "$pkg"
  done
done
