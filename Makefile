# limpet's commands. `make help` lists them.
.POSIX:
.PHONY: help build demo demo-down test lint proof bench bench-cni bench-path bench-networks bench-claims bench-restart bench-agent

RELEASE = $${CARGO_TARGET_DIR:-$(CURDIR)/target}/release
PROGRAMS = -p cni-plugin -p ipam-controller -p vxlan-agent -p limpetctl

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

build: ## The four programs, for use, in target/release
	scripts/setup build
	cargo build --locked --release $(PROGRAMS)

demo: ## A datacentre in network namespaces with limpet in it (as root)
	scripts/setup demo
	cargo build --locked --release $(PROGRAMS)
	LIMPET_BIN_DIR=$(RELEASE) examples/demo/demo up

demo-down: ## Removes the demo, also one that was killed
	examples/demo/demo down

test: ## Everything that must hold: format, lints, docs, scripts, tests (as root)
	scripts/setup test
	scripts/test

lint: ## Format, lints, docs and scripts alone
	scripts/setup test
	scripts/test lint

proof: ## What shows that no address is given twice, at length, and the bugs that it must find (as root)
	scripts/setup test
	scripts/proof

bench: bench-cni bench-path bench-networks bench-claims bench-restart bench-agent ## All measurements

bench-cni: ## ADD and DEL beside bridge + host-local (as root)
	scripts/setup bench
	cargo build --locked --release $(PROGRAMS)
	LIMPET_BIN_DIR=$(RELEASE) cargo run --locked --release -p limpet-benches --bin bench-cni

bench-path: ## The data path beside the underlay and a VXLAN made by hand (as root)
	scripts/setup bench
	cargo build --locked --release $(PROGRAMS)
	LIMPET_BIN_DIR=$(RELEASE) cargo run --locked --release -p limpet-benches --bin bench-path

bench-networks: ## What a packet pays for 200 networks on its hosts (as root)
	scripts/setup bench
	cargo build --locked --release $(PROGRAMS)
	LIMPET_BIN_DIR=$(RELEASE) cargo run --locked --release -p limpet-benches --bin bench-networks

bench-claims: ## Durable claims per second beside what disk, store and etcd can do
	scripts/setup bench
	cargo build --locked --release $(PROGRAMS)
	LIMPET_BIN_DIR=$(RELEASE) cargo run --locked --release -p limpet-benches --bin bench-claims

bench-restart: ## Packets lost while limpet's programs are killed, replaced, frozen or left alone (as root)
	scripts/setup bench
	cargo build --locked --release $(PROGRAMS)
	LIMPET_BIN_DIR=$(RELEASE) cargo run --locked --release -p limpet-benches --bin bench-restart

bench-agent: ## What is deleted comes back, what is committed arrives, what an idle agent costs (as root)
	scripts/setup bench
	cargo build --locked --release $(PROGRAMS)
	LIMPET_BIN_DIR=$(RELEASE) cargo run --locked --release -p limpet-benches --bin bench-agent
