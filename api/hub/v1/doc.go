// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hubv1 is the contract between the manager's hub and the agents, in
// protocol buffers and gRPC. hub.proto states its rules of order; convert.go
// turns messages into the values of package flow and back, refusing what is
// malformed.
package hubv1

//go:generate protoc --plugin=../../../build/tools/protoc-gen-go --plugin=../../../build/tools/protoc-gen-go-grpc -I ../../.. --go_out=../../.. --go_opt=module=github.com/policygate/policygate --go-grpc_out=../../.. --go-grpc_opt=module=github.com/policygate/policygate api/hub/v1/hub.proto
