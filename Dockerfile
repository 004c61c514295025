# One image for manager, agent, hold and, on Kube-OVN, northbound. Build for both architectures with
#   docker buildx build --platform linux/amd64,linux/arm64 -t IMG .
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS TARGETARCH VERSION=dev
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY api api
COPY agent agent
COPY cmd cmd
COPY controllers controllers
COPY internal internal
COPY webhook webhook
COPY hack/linked hack/linked
COPY hack/licence hack/licence
COPY hack/sbom hack/sbom
RUN mkdir /out && CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w" -o /out/ ./cmd/manager ./cmd/agent ./cmd/hold ./cmd/northbound && \
    go run ./hack/sbom -version "$VERSION" -o /out/sbom.cdx.json

# Static binaries that run nothing else.
FROM scratch
COPY --from=build /out/manager /out/agent /out/hold /out/northbound /
COPY --from=build /out/sbom.cdx.json /usr/share/policygate/sbom.cdx.json
# All but the agent run as this user; the agent's manifest asks for another.
USER 65532:65532
