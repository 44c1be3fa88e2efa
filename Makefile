# SPDX-License-Identifier: Apache-2.0

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
CONFIG  ?= config.yaml

# Tools run at the versions named here, built by the Go toolchain itself.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0

.DEFAULT_GOAL := help
.PHONY: help build run cluster test test-deps unit lint vuln bench bench-go torture fuzz clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

build: ## build bin/mqim
	$(GO) build -ldflags '-X main.release=$(VERSION)' -o bin/mqim ./cmd/mqim

run: build ## build and serve on loopback with config.yaml; messages are kept in data/
	./bin/mqim serve --config $(CONFIG)

cluster: build ## three nodes on a MariaDB and a Redis of their own, on loopback, until Ctrl-C; kept in data/cluster
	./scripts/cluster.sh data/cluster

test: test-deps lint unit ## install what the tests need, lint, and run every test with the race detector

test-deps: ## install what the tests need and is missing (Debian and npm packages)
	./scripts/test-deps.sh

unit: ## run every test with the race detector
	$(GO) test -race -timeout 12m ./...

lint: ## gofmt, go vet, staticcheck, govulncheck
	./scripts/lint.sh $(STATICCHECK) $(GOVULNCHECK)

bench: build ## compare with mochi alone and mosquitto on this machine (some 10 minutes a round, 3 rounds)
	./bench/run.sh

bench-go: ## micro-benchmarks with allocations
	$(GO) test -run '^$$' -bench . -benchmem ./im ./hooks/... ./transport ./store/pebble ./cluster ./bench

torture: ## the long forms of the random and crash tests
	MQIM_TORTURE=1 $(GO) test -race -timeout 60m -count 1 ./...

fuzz: ## each fuzz target for FUZZTIME (default 30s)
	./scripts/fuzz.sh $(or $(FUZZTIME),30s)

clean: ## remove what was built
	rm -rf bin
