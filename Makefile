# Vigil: see README.md. Each target installs what it needs first.

SWIFT ?= swift
VIGIL := .build/release/vigil

.PHONY: demo test bench build setup lint format clean

demo: build
	@$(VIGIL) demo

test: setup
	scripts/test

# Options: make bench BENCH="--quick --filter virtual"
bench: build
	$(SWIFT) build -c release --package-path Benchmarks --scratch-path .build/benchmarks --product vigil-bench
	@.build/benchmarks/release/vigil-bench --vigil $(VIGIL) --output .build/bench.json $(BENCH)

build: setup
	$(SWIFT) build -c release --product vigil

setup:
	@scripts/setup

lint:
	$(SWIFT) format lint --strict --recursive --parallel Package.swift Sources Tests Plugins Benchmarks

format:
	$(SWIFT) format --in-place --recursive --parallel Package.swift Sources Tests Plugins Benchmarks

clean:
	$(SWIFT) package clean
