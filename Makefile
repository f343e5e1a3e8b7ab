# Vigil: see README.md. Each target installs what it needs first.

SWIFT ?= swift
VIGIL := .build/release/vigil

.PHONY: demo test build setup lint format clean

demo: build
	@$(VIGIL) demo

test: setup
	scripts/test

build: setup
	$(SWIFT) build -c release --product vigil

setup:
	@scripts/setup

lint:
	$(SWIFT) format lint --strict --recursive --parallel Package.swift Sources Tests Plugins

format:
	$(SWIFT) format --in-place --recursive --parallel Package.swift Sources Tests Plugins

clean:
	$(SWIFT) package clean
