#!/bin/sh
# Removes Policy Gate in the order that leaves no Pod stuck:
#  1. the webhook, so that no further Pod is given a gate;
#  2. the manager and the agents, so that nobody writes against step 4;
#  3. the admission policies, which forbid everybody else to open gates;
#  4. every gated Pod is let go, as the person who runs this;
#  5. the rest.
# $1 is the kubectl to use; its current context is the cluster. $2 is what was
# deployed, a directory for kubectl's -k.
set -eu
kubectl=${1:-kubectl}
deployed=${2:-build/deploy}
cd "$(dirname "$0")/.."
quiet="--ignore-not-found --wait=true"
$kubectl delete mutatingwebhookconfiguration policygate $quiet
$kubectl -n policygate-system delete deployment policygate-manager $quiet
$kubectl -n policygate-system delete daemonset policygate-agent $quiet
$kubectl delete validatingadmissionpolicybinding policygate-status-writers policygate-annotation-writers $quiet
$kubectl delete validatingadmissionpolicy policygate-status-writers policygate-annotation-writers $quiet
go run ./cmd/manager release-held
$kubectl delete -k "$deployed" --ignore-not-found
