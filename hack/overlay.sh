#!/bin/sh
# Prints a kustomization that lays one image, $1, over config/default: for the
# Pods and for the hold that the manager injects. What follows are components of
# config, such as prometheus, that are laid over it, too.
set -eu
img=${1:?want an image, such as registry.example/policygate:v0.1.0}
shift
case $img in
*@*) name=${img%%@*}; version="digest: ${img#*@}" ;;
*)
	tag=${img##*:}
	# A colon before the last slash belongs to the registry's port.
	case $tag in */* | "$img") name=$img; tag=latest ;; *) name=${img%:*} ;; esac
	version="newTag: \"$tag\"" ;;
esac
cat <<EOF
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
- ../../config/default
images:
- name: policygate
  newName: $name
  $version
patches:
- patch: |-
    apiVersion: apps/v1
    kind: Deployment
    metadata:
      name: policygate-manager
      namespace: policygate-system
    spec:
      template:
        spec:
          containers:
          - name: manager
            env:
            - name: HOLD_IMAGE
              value: $img
EOF
[ $# -eq 0 ] || echo "components:"
for component; do echo "- ../../config/$component"; done
