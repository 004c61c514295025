# Policy Gate. `make help` lists the targets.
#
# Two commands need nothing but Go, make and root on Debian or Ubuntu:
#   make demo   the race, without and with the gate, on a real cluster
#   make test   everything that has to hold

IMG ?= policygate:dev
KUBECTL ?= kubectl
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
CONTROLLER_GEN = go tool -modfile=hack/generate.mod controller-gen
GO_BUILD = CGO_ENABLED=0 go build -trimpath -ldflags "-s -w"

# ENGINE=kube-router KUBE_ROUTER=/path/to/binary runs demo and e2e with the real
# kube-router in place of the test engine.
export ENGINE ?= test
export KUBE_ROUTER ?=
export KUBE_ROUTER_FLAGS ?=

CLUSTER ?= dev
NODES ?= 2

# What the tests need from Debian: the container runtime and the netfilter tools.
# prometheus runs the dashboard's queries; with systemd Debian's package starts one
# of its own at port 9090, which no test uses.
COMMANDS = containerd runc iptables ipset nft ip nsenter gcc prometheus promtool
PACKAGES = containerd runc containernetworking-plugins iptables ipset nftables \
           iproute2 util-linux conntrack gcc libc6-dev prometheus

# What the tests with a real OVN need. They start its daemons themselves, in
# network namespaces and a directory of their own.
OVN_COMMANDS = ovsdb-server ovsdb-tool ovs-vswitchd ovs-vsctl ovs-ofctl ovn-northd ovn-controller ovn-nbctl ovn-sbctl ip ethtool
OVN_PACKAGES = openvswitch-switch ovn-central ovn-host iproute2 ethtool

.DEFAULT_GOAL := help

##@ General
.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z0-9-]+:.*##/ {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ See it
.PHONY: demo
demo: deps ## Three rounds of Jobs against MariaDB: nothing, `sleep 10`, gated (KEEP=1 leaves the cluster)
	cd test/e2e && go run ./cmd/demo

.PHONY: cluster-up
cluster-up: deps ## A real cluster on this machine, kept (CLUSTER=dev NODES=2)
	cd test/cluster && go run ./cmd/cluster up --name $(CLUSTER) --nodes $(NODES)

.PHONY: cluster-down
cluster-down: ## Remove that cluster
	cd test/cluster && go run ./cmd/cluster down --name $(CLUSTER)

##@ Test
.PHONY: test
test: deps ## Everything: lint, unit, kernel and end-to-end tests
	$(MAKE) lint
	$(MAKE) supply-chain
	$(MAKE) test-unit
	$(MAKE) test-oracle
	$(MAKE) test-observe
	$(MAKE) test-scale
	$(MAKE) test-kernel
	$(MAKE) test-cluster
	$(MAKE) test-apiserver
	$(MAKE) test-ovn
	$(MAKE) test-e2e

.PHONY: deps
deps:
	@missing=; for c in $(COMMANDS); do command -v $$c >/dev/null || missing="$$missing $$c"; done; \
	[ -d /usr/lib/cni ] || missing="$$missing cni-plugins"; \
	if [ -n "$$missing" ]; then \
	  echo "installing what is missing:$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null; \
	fi

# Where systemd runs, Debian starts the daemons of what it installs: those that
# come with this are stopped again, one that was there before is left alone.
.PHONY: deps-ovn
deps-ovn:
	@missing=; for c in $(OVN_COMMANDS); do command -v $$c >/dev/null || missing="$$missing $$c"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing what is missing:$$missing"; \
	  units=; for p in openvswitch-switch ovn-central ovn-host; do \
	    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || units="$$units $$p"; done; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(OVN_PACKAGES) >/dev/null || exit; \
	  if [ -n "$$units" ] && [ -d /run/systemd/system ]; then systemctl --quiet disable --now $$units; fi; \
	fi

.PHONY: test-unit
test-unit: ## Tests that need neither root nor a cluster, with the race detector
	go test -race -count=1 $$(go list ./... | grep -v -e /test/)

.PHONY: test-oracle
test-oracle: ## The semantics of NetworkPolicy against an independent implementation (ORACLE_WORLDS=8000 for long)
	cd test/oracle && go test -count=1 ./...

.PHONY: test-observe
test-observe: deps ## Alerts by promtool, and every query of alerts and dashboard by a real Prometheus
	go test -count=1 ./test/observe/...

.PHONY: test-scale
test-scale: ## The manager with dozens of agents on simulated kernels
	go test -count=1 $$(go list ./test/bench/...)

.PHONY: test-kernel
test-kernel: deps ## Rules and packets in network namespaces (root, or a user who may make user namespaces)
	go test -count=1 -timeout 20m ./test/kernel/... ./test/engine/...

.PHONY: test-ovn
test-ovn: deps-ovn kube ## Kube-OVN's dataplane: a real OVN with real packets in network namespaces, and gates on it with a real API server (root)
	KUBEBUILDER_ASSETS=$(CURDIR)/build/kube/bin go test -count=1 -timeout 20m -tags apiserver ./test/ovn/...

.PHONY: fuzz-verdict
fuzz-verdict: deps ## Verdicts on random rules against the kernel, for long (N=200000 SEED=...)
	go run ./test/kernel/cmd/fuzz-verdict -n $(or $(N),200000) $(if $(SEED),-seed $(SEED))

.PHONY: fuzz
fuzz: ## Every Fuzz function of all modules, each for FUZZTIME=30s (FUZZ=FuzzVerdict for some)
	go run ./hack/fuzz -time $(or $(FUZZTIME),30s) -run '$(FUZZ)'

.PHONY: supply-chain
supply-chain: vulncheck licences sbom ## Known vulnerabilities, licences and the bill of materials of what is shipped

# Not test/cluster: it is Kubernetes itself, at the versions that Kubernetes asks for.
.PHONY: vulncheck
vulncheck: ## govulncheck; VULNCHECK=required fails without its database, GOVULNDB=file:///copy names another
	go run ./hack/vulncheck . test/e2e test/oracle

.PHONY: licences
licences: ## Fails if anything is linked without a licence that hack/licence knows
	@mkdir -p build && go run ./hack/licences >build/licences.txt
	@echo build/licences.txt

.PHONY: sbom
sbom: ## What is linked into manager, agent, hold, northbound and plugin: CycloneDX, in build/sbom.cdx.json
	go run ./hack/sbom -version $(VERSION) -o build/sbom.cdx.json

.PHONY: test-cluster
test-cluster: kube ## The cluster harness itself (root)
	cd test/cluster && go test -count=1 -timeout 20m . ./image ./cmd/...

.PHONY: kube
kube: deps
	cd test/cluster && go run ./cmd/cluster build

.PHONY: test-apiserver
test-apiserver: kube ## Tests against a real API server alone
	KUBEBUILDER_ASSETS=$(CURDIR)/build/kube/bin go test -count=1 -tags apiserver ./agent/reporter/... ./cmd/manager/... ./config/policy/... ./controllers/explain/... ./controllers/hub/... ./controllers/policystatus/... ./controllers/startup/... ./webhook ./test/bench/apiserver/...

.PHONY: test-e2e
test-e2e: kube ## Real clusters from creation to the first packet (root; ENGINE=kube-router too; RUN= for some); all that is said is in build/e2e.json
	@mkdir -p build
	cd test/e2e && go tool -modfile=../../hack/testsum.mod gotestsum --format testname --jsonfile $(CURDIR)/build/e2e.json -- \
	  -count=1 -timeout 60m -p 1 -parallel 2 $(if $(RUN),-run '$(RUN)') ./...

.PHONY: chaos
chaos: NODES = 3
chaos: kube ## Gates against an observer while parts fail (DURATION=10m NODES=3 SEED= ENGINE= VARIANT=host-firewall|no-bridge-nf|no-ipv6)
	cd test/e2e && go run ./cmd/chaos -duration $(or $(DURATION),10m) -nodes $(NODES) \
	  $(if $(SEED),-seed $(SEED)) $(if $(VARIANT),-variant $(VARIANT))

.PHONY: lint
lint: ## golangci-lint and the linter of API conventions, pinned in hack/*.mod
	go tool -modfile=hack/lint.mod golangci-lint run ./...
	go tool -modfile=hack/apilint.mod golangci-lint-kube-api-linter run -c hack/apilint.yml api/v1alpha1/*_types.go
	# Not test/cluster/kube: it is Kubernetes itself, which takes minutes to type-check.
	cd test/cluster && go tool -modfile=../../hack/lint.mod golangci-lint run . ./image ./cmd/...
	cd test/e2e && go tool -modfile=../../hack/lint.mod golangci-lint run ./...
	cd test/oracle && go tool -modfile=../../hack/lint.mod golangci-lint run ./...
	go run ./hack/reference -check
	go run ./hack/rbac -check

.PHONY: bench
bench: bench-packages bench-kernel bench-ovn bench-scale bench-apiserver ## All benchmarks (root; an hour)

.PHONY: bench-packages
bench-packages: ## Those of each package (6 minutes)
	go test -run '^$$' -bench . -benchmem $$(go list ./... | grep -v -e /test/)

.PHONY: bench-kernel
bench-kernel: deps ## The agent against a real kernel (root; 6 minutes)
	# One at a time: what is measured is CPU time as well. Each takes its own number of rounds.
	go test -run '^$$' -bench . -benchmem -benchtime 1x -timeout 20m ./test/kernel

.PHONY: bench-ovn
bench-ovn: deps-ovn ## How far behind the packet a gate is on OVN, and what its traces cost (2 minutes)
	go test -run '^$$' -bench . -benchtime 30x ./test/ovn/bench
	go test -run '^$$' -bench . ./test/ovn/verdict

.PHONY: bench-scale
bench-scale: ## The manager with 100 and 1,000 agents on simulated kernels (40 minutes; SIMULATE="--scenario kill --for 60s")
	go run ./test/bench/cmd/simulate $(SIMULATE)
	$(if $(SIMULATE),,go run ./test/bench/cmd/simulate --scenario held --nodes 1000)

.PHONY: bench-apiserver
bench-apiserver: kube ## The manager's binary against a real API server with 100 and 1,000 fake nodes (8 minutes)
	KUBEBUILDER_ASSETS=$(CURDIR)/build/kube/bin go run ./test/bench/apiserver/cmd/measure
	KUBEBUILDER_ASSETS=$(CURDIR)/build/kube/bin go run ./test/bench/apiserver/cmd/measure --nodes 1000 --pods 5000 --gated 600 --rate 20

##@ Build
.PHONY: build
build: ## The binaries, into bin/; put kubectl-policygate into your PATH
	$(GO_BUILD) -o bin/ ./cmd/manager ./cmd/agent ./cmd/hold ./cmd/northbound ./cmd/kubectl-policygate
	# By this name kubectl asks it for completions.
	ln -sf kubectl-policygate bin/kubectl_complete-policygate

.PHONY: image
image: ## One image with manager, agent and hold (docker; PLATFORMS=linux/amd64,linux/arm64 and PUSH=1 for a release)
	docker buildx build $(if $(PLATFORMS),--platform $(PLATFORMS)) $(if $(PUSH),--push,--load) --build-arg VERSION=$(VERSION) -t $(IMG) .

.PHONY: generate
generate: ## Generated code (needs protoc, Debian's protobuf-compiler)
	go build -o build/tools/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	go generate ./api/...
	$(CONTROLLER_GEN) object:headerFile=hack/boilerplate.go.txt paths=./api/v1alpha1

.PHONY: manifests
manifests: ## The CustomResourceDefinitions, from api/v1alpha1, and the roles, from the code's markers
	$(CONTROLLER_GEN) crd paths=./api/v1alpha1 output:crd:dir=config/crd/bases
	go run ./hack/rbac
	$(MAKE) reference

.PHONY: reference
reference: ## docs/reference.md and the PrometheusRule, from the source and the alerts
	go run ./hack/reference

.PHONY: fmt
fmt: ## Format
	go tool -modfile=hack/lint.mod golangci-lint fmt ./...

##@ Deploy
# An overlay that names the image for the Pods and for the hold, and takes in
# COMPONENTS of config: fail, kube-ovn, kube-ovn/services, prometheus, prometheus/ports, services, startup-taint.
# DEPLOY is where it is written below build: two clusters at a time need two.
COMPONENTS ?=
DEPLOY ?= deploy
build/$(DEPLOY)/kustomization.yaml: FORCE
	@mkdir -p $(@D)
	@hack/overlay.sh $(IMG) $(COMPONENTS) > $@
.PHONY: FORCE
FORCE:

.PHONY: deploy
deploy: build/$(DEPLOY)/kustomization.yaml ## Install into the current cluster (IMG=registry/policygate:tag COMPONENTS=prometheus)
	$(KUBECTL) apply --server-side -k build/$(DEPLOY)
	$(KUBECTL) -n policygate-system rollout status deployment/policygate-manager --timeout 3m
	$(KUBECTL) -n policygate-system rollout status daemonset/policygate-agent --timeout 5m

.PHONY: installer
installer: build/$(DEPLOY)/kustomization.yaml ## One YAML that installs everything, in build/install.yaml
	$(KUBECTL) kustomize build/$(DEPLOY) > build/install.yaml
	@echo build/install.yaml

.PHONY: undeploy
undeploy: build/$(DEPLOY)/kustomization.yaml ## Remove it; Pods that are held are let go first
	hack/undeploy.sh "$(KUBECTL)" build/$(DEPLOY)

.PHONY: clean
clean: ## Remove what was built
	rm -rf build bin
