// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
)

// DefaultNotReadyLimit is how long a node may be not ready until others no
// longer wait for it. A kubelet that only restarts is back by then.
const DefaultNotReadyLimit = time.Minute

// Options are what an Index needs. All fields but Services are required.
type Options struct {
	Clock clock.WithDelayedExecution
	// ConditionType is the readiness gate that makes a Pod a subject.
	ConditionType corev1.PodConditionType
	// NotReadyLimit is how long a node may be not ready until it leaves the
	// spans of Pods on other nodes.
	NotReadyLimit time.Duration
	// Expect are the options of every computation.
	Expect expect.Options
	// Services is set for an engine that writes a policy anew when a Service is
	// created, deleted or selects other Pods: Kube-OVN up to 1.15. If it is not
	// set, SetService and DeleteService do nothing.
	Services bool
}

// DefaultOptions returns the defaults, with the real clock.
func DefaultOptions() Options {
	return Options{
		Clock:         clock.RealClock{},
		ConditionType: v1alpha1.ConditionProgrammed,
		NotReadyLimit: DefaultNotReadyLimit,
		Expect:        expect.DefaultOptions(),
	}
}

// Index is the state that assignments are computed from. Its methods may be
// called from any goroutine; events about one object must come in order. It
// keeps nothing of the objects that it is given but their labels.
type Index struct {
	options Options
	started time.Time
	wake    chan struct{}
	// policyWake is what PolicyWake returns.
	policyWake chan struct{}

	mu sync.Mutex // guards what follows
	// listed is true once all that was there at the start is known, and newest
	// is the latest time of creation that the API server gave to anything.
	listed bool
	newest time.Time

	cluster *expect.Cluster
	pods    map[types.UID]*pod
	byName  map[types.NamespacedName]types.UID
	nodes   map[string]*node
	// reached are the nodes of which Reach says so.
	reached map[string]struct{}
	// expiring are the nodes that are not ready, but not for too long yet.
	expiring map[string]struct{}
	// namespaces has the UID of the namespace of each name.
	namespaces map[string]types.UID
	services   map[types.NamespacedName]service
	held       map[types.UID]*held
	links      links[*held]
	// dependents are the held subjects that depend on a policy, see
	// expect.Result.Policies: only if Services are watched.
	dependents linksOf[types.NamespacedName, *held]
	// What Affected is to return: all of held or affected, and released.
	all      bool
	affected map[*held]struct{}
	released map[types.UID]struct{}
	// epoch counts the changes that touched everything.
	epoch    uint64
	departed departed
	// succeeding are the subjects whose last assignment depends on departed
	// Pods, and until when it does so on all of them.
	succeeding map[*held]time.Time
	// due is when passTime has something to do, zero: never.
	due      time.Time
	versions map[Kind]*versions
	// sequence is the Seq of the Pod whose address became known last, arrivals
	// when the last ones did.
	sequence uint64
	arrivals arrivals

	policies    map[types.NamespacedName]*policy
	policyLinks links[*policy]
	// counts has the gated Pods of each label set that has any.
	counts map[*expect.LabelSet]counts
	// What ChangedPolicies is to return: all of policies, and changed, in which
	// true is for what has changed in its meaning.
	allChanged bool
	changed    map[types.NamespacedName]bool
}

// Listed says that all that was there at the start has been given to the index.
// What is first seen before, nobody knows since when it is there. No clock can
// tell instead: that of the API server, which dates objects, may differ from
// one's own by any amount.
func (x *Index) Listed() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.listed {
		return
	}
	x.listed = true
	x.notReadyBefore()
}

// date notes when an object was created.
func (x *Index) date(o metav1.Object) {
	if created := o.GetCreationTimestamp().Time; created.After(x.newest) {
		x.newest = created
	}
}

// New returns an Index that holds nothing.
func New(o Options) *Index {
	return &Index{
		options:     o,
		started:     o.Clock.Now(),
		wake:        make(chan struct{}, 1),
		policyWake:  make(chan struct{}, 1),
		cluster:     expect.NewCluster(),
		pods:        map[types.UID]*pod{},
		byName:      map[types.NamespacedName]types.UID{},
		nodes:       map[string]*node{},
		reached:     map[string]struct{}{},
		expiring:    map[string]struct{}{},
		namespaces:  map[string]types.UID{},
		held:        map[types.UID]*held{},
		services:    map[types.NamespacedName]service{},
		links:       newLinks[*held](),
		dependents:  linksOf[types.NamespacedName, *held]{},
		policies:    map[types.NamespacedName]*policy{},
		policyLinks: newLinks[*policy](),
		counts:      map[*expect.LabelSet]counts{},
		changed:     map[types.NamespacedName]bool{},
		affected:    map[*held]struct{}{},
		released:    map[types.UID]struct{}{},
		succeeding:  map[*held]time.Time{},
		departed:    departed{byAddress: map[netip.Addr][]departure{}},
		versions:    map[Kind]*versions{KindNetworkPolicy: newVersions(), KindNamespace: newVersions()},
	}
}

// Subjects returns every held subject, sorted.
func (x *Index) Subjects() []types.UID {
	x.mu.Lock()
	defer x.mu.Unlock()
	return sortedKeys(x.held)
}

// SetPod takes a Pod that was added or changed.
func (x *Index) SetPod(p *corev1.Pod) {
	x.mu.Lock()
	defer x.mu.Unlock()
	key := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
	if former, ok := x.byName[key]; ok && former != p.UID {
		// A watch that was interrupted shows a deletion and a creation of one
		// name as a change.
		x.deletePod(former)
	}
	x.byName[key] = p.UID
	x.setPod(x.newPod(p))
}

// DeletePod takes a Pod that is gone; one that is not held is no error.
func (x *Index) DeletePod(uid types.UID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.deletePod(uid)
}

// SetPolicy takes a NetworkPolicy that was added or changed. One that cannot
// be understood keeps every Pod of its namespace unassigned.
func (x *Index) SetPolicy(np *networkingv1.NetworkPolicy) {
	x.mu.Lock()
	defer x.mu.Unlock()
	before := x.policies[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}]
	if before != nil && before.uid != np.UID {
		x.versions[KindNetworkPolicy].delete(before.uid, "", x.options.Clock.Now())
	}
	x.versions[KindNetworkPolicy].set(np.UID, np.ResourceVersion)
	if before != nil && before.uid == np.UID && np.Generation != 0 && before.generation == np.Generation {
		return // labels, annotations, managed fields
	}
	x.setPolicySubject(before, np)
	after, _ := expect.NewPolicy(np) // its Err is part of the state
	x.meet(x.cluster.SetPolicy(after))
}

// DeletePolicy takes a NetworkPolicy that is gone, in the last state that is
// known of it.
func (x *Index) DeletePolicy(np *networkingv1.NetworkPolicy) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.versions[KindNetworkPolicy].delete(np.UID, np.ResourceVersion, x.options.Clock.Now())
	before := x.policies[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}]
	if before == nil || before.uid != np.UID {
		return
	}
	x.deletePolicySubject(before)
	x.meet(x.cluster.DeletePolicy(np.Namespace, np.Name))
}

// SetNamespace takes a Namespace that was added or changed.
func (x *Index) SetNamespace(ns *corev1.Namespace) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.versions[KindNamespace].set(ns.UID, ns.ResourceVersion)
	if former, ok := x.namespaces[ns.Name]; ok && former != ns.UID {
		x.versions[KindNamespace].delete(former, "", x.options.Clock.Now())
	}
	x.namespaces[ns.Name] = ns.UID
	before := x.cluster.Namespace(ns.Name)
	if before != nil && sameLabels(before.Labels, ns.Labels) {
		return
	}
	x.meet(x.cluster.SetNamespace(&expect.Namespace{
		Name:   ns.Name,
		Labels: ns.Labels,
		Inject: ns.Labels[v1alpha1.KeyInject] == v1alpha1.InjectNamespace,
	}))
}

// DeleteNamespace takes a Namespace that is gone, in the last state that is
// known of it.
func (x *Index) DeleteNamespace(ns *corev1.Namespace) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.versions[KindNamespace].delete(ns.UID, ns.ResourceVersion, x.options.Clock.Now())
	if x.namespaces[ns.Name] != ns.UID {
		return
	}
	delete(x.namespaces, ns.Name)
	x.meet(x.cluster.DeleteNamespace(ns.Name))
}

// Has reports whether the index holds the object at this version or a newer
// one, or has seen it go. It reports false for a version that is no number.
func (x *Index) Has(kind Kind, uid types.UID, resourceVersion string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	v, ok := x.versions[kind]
	return ok && v.has(uid, resourceVersion)
}

func sortedKeys[V any](m map[types.UID]V) []types.UID {
	out := make([]types.UID, 0, len(m))
	for uid := range m {
		out = append(out, uid)
	}
	slices.Sort(out)
	return out
}
