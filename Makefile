# SPDX-License-Identifier: Apache-2.0
# `make` prints the targets. demo, test, kernels, bench and cluster need root; they install what they need on Debian.
SHELL := /bin/bash
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
CLANG := clang-19
LOCAL := daemonset/local
IMAGE ?= bin/fairlead-image.tar
TAG ?= fairlead:$(VERSION)
export CGO_ENABLED := 0

.PHONY: help
help: ## print the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: build
build: ## bin/fairleadd, bin/fairlead, bin/cni/fairlead-cni
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/fairleadd ./cmd/fairleadd
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/fairlead ./cmd/fairlead
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/cni/fairlead-cni ./plugins/fairlead-cni

.PHONY: bpffs
bpffs:
	@mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf

.PHONY: demo
demo: bpffs ## three nodes in network namespaces: pods, overlay, a Service, a killed agent (KEEP=1 leaves them up)
	go run ./pkg/testnet/demo $(if $(KEEP),-keep)

.PHONY: demo-down
demo-down: ## remove what `make demo KEEP=1` left
	go run ./pkg/testnet/demo -down

.PHONY: test
test: build test-deps ## all tests; as root
	go test -timeout 20m ./...

.PHONY: test-deps
test-deps: bpffs
	@$(LOCAL)/deps.sh iproute2:ip nftables:nft iputils-ping:ping
	@$(LOCAL)/setup.sh apiserver

.PHONY: check
check: bpffs ## what CI asks of every commit: format, vet, staticcheck, generated code, import rules, documented maps, loadable objects
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "gofmt differs, run gofmt -w: $$out"; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	@$(MAKE) -s generate
	@git diff --exit-code --stat -- pkg/bpf || { echo "generated code differs from the C sources: commit what make generate made"; exit 1; }
	go test -count=1 -run 'Imports|Documented|Load' ./pkg/...

.PHONY: generate
generate: ## the Go types and objects from bpf/*.c, with the pinned clang
	@$(LOCAL)/deps.sh $(CLANG):$(CLANG) llvm-19:llvm-strip-19
	go generate ./...

.PHONY: headers
headers: ## copy bpf/include again from the installed libbpf-dev and linux-libc-dev
	cp /usr/include/bpf/{bpf_helpers,bpf_helper_defs,bpf_endian,bpf_core_read,bpf_tracing}.h bpf/include/bpf/
	cp /usr/include/linux/{bpf,bpf_common}.h bpf/include/linux/

.PHONY: bench
bench: build test-deps ## all benchmarks, beside their peers; bench/README.md says what they measure
	bench/run.sh

.PHONY: kernels
kernels: ## agent, packet and namespace tests on Debian's kernels 6.12 and 6.1 in emulation
	$(LOCAL)/kernels.sh

.PHONY: image
image: build ## the container image as a docker archive, without an engine
	@mkdir -p $(dir $(IMAGE))
	cd $(LOCAL) && go run ./image -o $(abspath $(IMAGE)) -tag $(TAG) -entrypoint '["/usr/bin/fairleadd"]' \
		$(abspath bin/fairleadd)=/usr/bin/fairleadd $(abspath bin/fairlead)=/usr/bin/fairlead \
		$(abspath bin/cni/fairlead-cni)=/opt/fairlead/cni/fairlead-cni

.PHONY: cluster
cluster: ## a real Kubernetes on this machine with Fairlead as its network (two nodes)
	$(LOCAL)/setup.sh
	$(LOCAL)/up.sh 2
	$(LOCAL)/fairlead.sh $(VERSION)

.PHONY: smoke
smoke: ## what CI checks on the running cluster
	$(LOCAL)/smoke.sh

.PHONY: e2e
e2e: ## upstream e2e tests on the running cluster: FOCUS=regexp SKIP=regexp
	$(LOCAL)/setup.sh e2e
	$(LOCAL)/e2e.sh '$(FOCUS)' '$(SKIP)'

.PHONY: cluster-down
cluster-down: ## remove the cluster
	$(LOCAL)/down.sh
