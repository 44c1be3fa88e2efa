#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lint.sh STATICCHECK GOVULNCHECK: the tools as module@version.
set -euo pipefail
cd "$(dirname "$0")/.."

unformatted=$(gofmt -l $(git ls-files -co --exclude-standard '*.go'))
if [ -n "$unformatted" ]; then
  echo "gofmt: not formatted:"
  echo "$unformatted"
  exit 1
fi
go vet ./...
go run "$1" ./...
# govulncheck needs the vulnerability database, which not every machine can reach.
if out=$(go run "$2" ./... 2>&1); then
  echo "govulncheck: nothing found"
elif grep -q 'Vulnerability #' <<<"$out"; then
  echo "$out"
  exit 1
else
  echo "govulncheck: could not run here: $(tail -n 1 <<<"$out")"
fi
