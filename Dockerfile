# One image for manager, agent and hold. Build for both architectures with
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
COPY webhook webhook
COPY hack/linked hack/linked
COPY hack/licence hack/licence
COPY hack/sbom hack/sbom
RUN mkdir /out && CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w" -o /out/ ./cmd/manager ./cmd/agent ./cmd/hold && \
    go run ./hack/sbom -version "$VERSION" -o /out/sbom.cdx.json

# Static binaries that run nothing else.
FROM scratch
COPY --from=build /out/manager /out/agent /out/hold /
COPY --from=build /out/sbom.cdx.json /usr/share/policygate/sbom.cdx.json
# The manager and the hold run as this user; the agent's manifest asks for root.
USER 65532:65532
