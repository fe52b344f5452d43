# Two commands for a newcomer, `make demo` and `make test`; the work is in scripts/setup.sh and xtask.
.DEFAULT_GOAL := help
.PHONY: help setup demo build image check test bench clean

# rustup's cargo, also in a shell that has not been restarted since, and before Debian's.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing on this machine (root or sudo)
	@scripts/setup.sh

demo: setup ## Watch real pod traffic, with totals that equal the kernel's own (root)
	@cargo xtask demo

build: setup ## Build the release binaries: orb8, orb8-agent and orb8-server
	@ORB8_BPF=required cargo build --release --package orb8-cli --package orb8-agent --package orb8-server

image: setup ## Build container images of the agent and the server, static, without Docker
	@cargo xtask image

check: ## Formatting, lints, documentation, licences
	@cargo xtask check

test: setup ## Run every test and look for leftovers (root; fewer tests without)
	@scripts/test-tools.sh
	@cargo xtask test

bench: setup ## Measure the cost of the probes (root)
	@cargo xtask bench

clean: ## Remove everything that was built
	@cargo clean --quiet
	@rm -rf orb8-probes/bpf/target
