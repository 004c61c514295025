// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/api/v1alpha1"
)

const (
	namespace = "shop"
	// roundLabel names the round that a Job belongs to.
	roundLabel = "round"
	port       = 3306
)

// startServer makes a database with one table, as any first start of MariaDB
// does, and serves it. The account exists for the network alone.
const startServer = `set -e
mkdir -p /var/lib/mysql /run/mysqld /tmp
mariadb-install-db --user=root --datadir=/var/lib/mysql --skip-test-db >/dev/null
cat > /tmp/init.sql <<EOF
CREATE DATABASE shop;
CREATE TABLE shop.orders (id INT PRIMARY KEY, item VARCHAR(32));
INSERT INTO shop.orders VALUES (1, 'first'), (2, 'second');
CREATE USER 'backup'@'%' IDENTIFIED BY 'backup';
GRANT SELECT, LOCK TABLES, SHOW VIEW ON shop.* TO 'backup'@'%';
EOF
exec mariadbd --user=root --datadir=/var/lib/mysql --socket=/run/mysqld/mysqld.sock \
  --bind-address=0.0.0.0 --skip-name-resolve --skip-ssl --init-file=/tmp/init.sql
`

// dump is the client's first act. The clock is read right before it.
const dump = `%s
echo "first-connect $(date +%%s%%N)"
exec mariadb-dump --host=%s --port=%d --user=backup --password=backup --no-tablespaces --result-file=/dev/null shop
`

func serverPod(image, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "mariadb", Namespace: namespace, Labels: map[string]string{"app": "mariadb"}},
		Spec: corev1.PodSpec{
			NodeSelector: map[string]string{corev1.LabelHostname: node},
			Containers: []corev1.Container{{
				Name: "mariadb", Image: image, ImagePullPolicy: corev1.PullIfNotPresent,
				Command: []string{"/bin/sh", "-c", startServer},
				Ports:   []corev1.ContainerPort{{Name: "mysql", ContainerPort: port}},
				// By exec: the kubelet on the Pod's node is always let in, so a
				// probe over the network would say the same.
				ReadinessProbe: &corev1.Probe{
					ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{
						"mariadb", "--socket=/run/mysqld/mysqld.sock", "-e", "SELECT 1 FROM shop.orders",
					}}},
					PeriodSeconds: 1,
				},
			}},
			TerminationGracePeriodSeconds: new(int64(1)),
		},
	}
}

func service() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "mariadb", Namespace: namespace},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "mariadb"},
			Ports:    []corev1.ServicePort{{Port: port, TargetPort: intstr.FromString("mysql")}},
		},
	}
}

// policy admits Pods with the label app=backup to MariaDB, and nobody else.
func policy() *networkingv1.NetworkPolicy {
	tcp := corev1.ProtocolTCP
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "allow-backup", Namespace: namespace},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "mariadb"}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "backup"}}}},
				Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: new(intstr.FromInt32(port))}},
			}},
		},
	}
}

func backupJob(name, round, image, node, host string) *batchv1.Job {
	before := ""
	annotations := map[string]string{}
	switch round {
	case Sleep10:
		before = "sleep 10"
	case Gated:
		annotations[v1alpha1.KeyInject] = v1alpha1.ValueTrue
	}
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{roundLabel: round}},
		Spec: batchv1.JobSpec{
			// The first connection has to do.
			BackoffLimit: new(int32(0)),
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{
					Labels:      map[string]string{"app": "backup", roundLabel: round},
					Annotations: annotations,
				},
				Spec: corev1.PodSpec{
					RestartPolicy: corev1.RestartPolicyNever,
					NodeSelector:  map[string]string{corev1.LabelHostname: node},
					Containers: []corev1.Container{{
						Name: "dump", Image: image, ImagePullPolicy: corev1.PullIfNotPresent,
						Command: []string{"/bin/sh", "-c", fmt.Sprintf(dump, before, host, port)},
					}},
					TerminationGracePeriodSeconds: new(int64(1)),
				},
			},
		},
	}
}

// churnPod is one of the Pods that come and go while the rounds run, so that
// the engine is never idle.
func churnPod(n int, image, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("churn-%d", n), Namespace: namespace, Labels: map[string]string{"app": "churn"}},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever,
			NodeSelector:  map[string]string{corev1.LabelHostname: node},
			Containers: []corev1.Container{{
				Name: "churn", Image: image, ImagePullPolicy: corev1.PullIfNotPresent,
				Args: []string{"sleep", "1m"},
			}},
			TerminationGracePeriodSeconds: new(int64(0)),
		},
	}
}
