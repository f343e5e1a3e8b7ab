# Vigil: see README.md. Each target installs what it needs first.

SWIFT ?= swift
VIGIL := .build/release/vigil

.PHONY: demo test bench fuzz fuzz-kernel build setup lint format clean

demo: build
	@$(VIGIL) demo

test: setup
	scripts/test

# Options: make bench BENCH="--quick --filter virtual"
bench: build
	$(SWIFT) build -c release --package-path Benchmarks --scratch-path .build/benchmarks --product vigil-bench
	@.build/benchmarks/release/vigil-bench --vigil $(VIGIL) --output .build/bench.json $(BENCH)

# Options: make fuzz FUZZ="-max_total_time=600"; make fuzz-kernel FUZZ_KIND=Image (or Patterns, or Guest)
FUZZ_KIND ?= Guest
fuzz-kernel: setup
	$(SWIFT) build -c release --sanitize fuzzer --package-path Fuzzing --scratch-path .build/fuzzing \
		--product vigil-fuzz-kernel
	@mkdir -p .build/fuzzing-found/$(FUZZ_KIND)
	@SWIFT_BACKTRACE=enable=no FUZZ_KIND=$(FUZZ_KIND) .build/fuzzing/release/vigil-fuzz-kernel -max_len=32768 \
		-timeout=25 -rss_limit_mb=1024 -artifact_prefix=.build/fuzzing-found/$(FUZZ_KIND)/ $(FUZZ) \
		.build/fuzzing-found/$(FUZZ_KIND) Fuzzing/KernelCorpus/$(FUZZ_KIND)

fuzz: setup
	$(SWIFT) build -c release --sanitize fuzzer --package-path Fuzzing --scratch-path .build/fuzzing \
		--product vigil-fuzz-image
	@mkdir -p .build/fuzzing-found
	@SWIFT_BACKTRACE=enable=no .build/fuzzing/release/vigil-fuzz-image -max_len=32768 -artifact_prefix=.build/fuzzing-found/ $(FUZZ) \
		.build/fuzzing-found Fuzzing/Corpus

build: setup
	$(SWIFT) build -c release --product vigil

setup:
	@scripts/setup

lint:
	$(SWIFT) format lint --strict --recursive --parallel Package.swift Sources Tests Plugins Benchmarks Fuzzing

format:
	$(SWIFT) format --in-place --recursive --parallel Package.swift Sources Tests Plugins Benchmarks Fuzzing

clean:
	$(SWIFT) package clean
