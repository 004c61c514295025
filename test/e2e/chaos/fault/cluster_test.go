// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// TestEachKindDisturbsAndMends begins and ends each kind once, on a cluster with
// gated Pods.
func TestEachKindDisturbsAndMends(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root, for network namespaces, mounts and containers")
	}
	s := startScene(t)
	looks := s.looks()
	random := rand.New(rand.NewPCG(1, 2))
	for _, kind := range Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			look, ok := looks[kind.Name]
			if !ok {
				t.Fatal("nobody looks at what it does")
			}
			v := look(t)
			f, err := kind.Begin(t.Context(), s.Testbed, random)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("target %s", f.Target)
			if err := v.disturbed(t.Context(), f); err != nil {
				t.Errorf("while it is in force: %v", err)
			}
			ctx := t.Context()
			if !v.waits {
				// What does not come back by itself is mended whatever becomes of the run.
				var cancel context.CancelFunc
				ctx, cancel = context.WithCancel(ctx)
				cancel()
			}
			if err := f.End(ctx); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the part to be back", func(ctx context.Context) error { return v.back(ctx, f) })
		})
	}
	// Whatever was done: Policy Gate opens gates as before.
	for _, n := range s.Cluster.Nodes() {
		s.pod(t, "last-"+n.Name, n)
		s.opens(t, "last-"+n.Name)
	}
}

// view is how a kind of fault is looked at.
type view struct {
	// disturbed reports it if the part works.
	disturbed func(context.Context, *Fault) error
	// back reports it if the part does not work, or not yet.
	back func(context.Context, *Fault) error
	// waits says that what failed starts again by itself.
	waits bool
}

// scene is a testbed with a gated Pod on each node, and policies for the engine
// to be busy with.
type scene struct {
	*testbed.Testbed
}

const namespace = "faults"

func startScene(t *testing.T) scene {
	t.Helper()
	bed, err := testbed.Start(t.Context(), testbed.Options{
		Name: "fault-kinds", Nodes: 3, Progress: t.Output(),
		// Or a Pod that is made while a replica starts again is let in without a gate.
		Components: []string{"fail"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			t.Log(bed.LastWords(ctx))
		}
		if err := bed.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	s := scene{bed}
	_, err = s.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: namespace, Labels: map[string]string{v1alpha1.KeyInject: v1alpha1.InjectNamespace},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Client.NetworkingV1().NetworkPolicies(namespace).Create(t.Context(), &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "deny-all"},
		Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Cluster.Nodes() {
		s.pod(t, "first-"+n.Name, n)
		s.opens(t, "first-"+n.Name)
	}
	return s
}

// pod makes a Pod that is to be gated.
func (s scene) pod(t *testing.T, name string, n *cluster.Node) {
	t.Helper()
	eventually(t, "Pod "+name+" to be made", func(ctx context.Context) error {
		_, err := s.Client.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PodSpec{
				NodeSelector: map[string]string{corev1.LabelHostname: n.Name},
				// Not 0: the Pod is gone when its address is free, and not before.
				TerminationGracePeriodSeconds: new(int64(1)),
				Containers: []corev1.Container{{
					Name: "probe", Image: testbed.ProbeImage, ImagePullPolicy: corev1.PullIfNotPresent, Args: []string{"serve", ":8080"},
				}},
			},
		}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

func (s scene) address(ctx context.Context, name string) (string, error) {
	pod, err := s.Client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	if pod.Status.PodIP == "" {
		return "", errors.New("it has no address")
	}
	return pod.Status.PodIP, nil
}

func (s scene) opens(t *testing.T, name string) {
	t.Helper()
	eventually(t, "the gate of "+name+" to open", func(ctx context.Context) error {
		pod, err := s.Client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == v1alpha1.ConditionProgrammed && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("conditions %v", pod.Status.Conditions)
	})
}

// eventually calls check until it succeeds, for a minute at most.
func eventually(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		last = check(ctx)
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("waited for %s: %v", what, last)
	}
}

// looks returns how each kind is looked at, by its name, from before it begins.
func (s scene) looks() map[string]func(*testing.T) view {
	one := func(int) int { return 1 }
	all := func(n int) int { return n }
	return map[string]func(*testing.T) view{
		"manager killed":                s.partView(managers(), isGone, one, true),
		"manager frozen":                s.partView(managers(), isStopped, one, false),
		"all managers killed":           s.partView(managers(), isGone, all, true),
		"agent killed":                  s.partView(agents(), isGone, one, true),
		"agent frozen":                  s.partView(agents(), isStopped, one, false),
		"engine killed":                 s.engineView(isGone),
		"engine killed in a sync":       s.engineCrashView,
		"engine frozen":                 s.engineView(isStopped),
		"API server killed":             s.apiServerView(isGone),
		"API server frozen":             s.apiServerView(isStopped),
		"two nodes cut from each other": s.cutView,
		"node cut off":                  s.cutView,
		"node rebooted":                 s.rebootView,
		"sandbox killed":                s.sandboxView,
		"addresses reused":              s.addressView,
	}
}

// isGone and isStopped say what a fault has made of a process.
func isGone(p *cluster.Process) bool { return p.Exited() }

func isStopped(p *cluster.Process) bool {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(content), ") ")
	return strings.HasPrefix(after, "T")
}

// partView looks at all of a part, of which the fault concerns so many.
func (s scene) partView(p part, is func(*cluster.Process) bool, count func(int) int, waits bool) func(*testing.T) view {
	return func(t *testing.T) view {
		var before []testbed.Part
		ready := func(ctx context.Context) error { return s.partsReady(ctx, p) }
		eventually(t, "all of them to run", ready)
		before, err := p.running(t.Context(), s.Testbed)
		if err != nil {
			t.Fatal(err)
		}
		return view{
			waits: waits,
			disturbed: func(ctx context.Context, _ *Fault) error {
				// The kernel stops a process' threads one by one.
				return soon(ctx, func() error {
					n := 0
					for _, b := range before {
						if is(b.Process) {
							n++
						}
					}
					if n != count(len(before)) {
						return fmt.Errorf("%d of %d are disturbed, want %d", n, len(before), count(len(before)))
					}
					return nil
				})
			},
			back: func(ctx context.Context, _ *Fault) error {
				for _, b := range before {
					if isStopped(b.Process) {
						return fmt.Errorf("%s is frozen", b.Pod)
					}
				}
				return ready(ctx)
			},
		}
	}
}

// partsReady reports it if not all Pods of a part are Ready.
func (s scene) partsReady(ctx context.Context, p part) error {
	pods, err := s.Client.CoreV1().Pods(testbed.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=policygate-" + p.name})
	if err != nil {
		return err
	}
	for _, pod := range pods.Items {
		if !slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}) {
			return fmt.Errorf("Pod %s is not Ready", pod.Name)
		}
	}
	return nil
}

func soon(ctx context.Context, check func() error) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, 10*time.Second, true, func(context.Context) (bool, error) {
		last = check()
		return last == nil, nil
	})
	return errors.Join(err, last)
}

func (s scene) engineView(is func(*cluster.Process) bool) func(*testing.T) view {
	return func(*testing.T) view {
		return view{
			disturbed: func(ctx context.Context, f *Fault) error {
				return soon(ctx, func() error {
					if !is(s.Engine(f.Target).Process()) {
						return errors.New("the engine works")
					}
					return nil
				})
			},
			back: func(context.Context, *Fault) error {
				for _, e := range s.Engines() {
					if isGone(e.Process()) || isStopped(e.Process()) {
						return errors.New("an engine does not work")
					}
				}
				return nil
			},
		}
	}
}

// engineCrashView looks at what the test engine says of its end, too.
func (s scene) engineCrashView(t *testing.T) view {
	v := s.engineView(isGone)(t)
	gone := v.disturbed
	v.disturbed = func(ctx context.Context, f *Fault) error {
		if err := gone(ctx, f); err != nil || s.EngineKind != testbed.EngineTest {
			return err
		}
		log, err := os.ReadFile(s.Engine(f.Target).Log())
		if err != nil {
			return err
		}
		if !strings.Contains(string(log), `"crashed":true`) {
			return fmt.Errorf("it was not in a sync; the end of its log: %s", log[max(0, len(log)-500):])
		}
		return nil
	}
	return v
}

func (s scene) apiServerView(is func(*cluster.Process) bool) func(*testing.T) view {
	ask := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := s.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		return err
	}
	return func(*testing.T) view {
		return view{
			disturbed: func(ctx context.Context, _ *Fault) error {
				if ask(ctx) == nil {
					return errors.New("the API server answers")
				}
				if !is(s.Cluster.APIServer()) {
					return errors.New("its process works")
				}
				return nil
			},
			back: func(ctx context.Context, _ *Fault) error { return ask(ctx) },
		}
	}
}

// cutView looks at which nodes reach which, and the API server.
func (s scene) cutView(*testing.T) view {
	check := func(ctx context.Context, f *Fault) error {
		for _, a := range s.Cluster.Nodes() {
			for _, b := range s.Cluster.Nodes() {
				severed := f != nil && f.Severs(a.Name, b.Name)
				if a != b && reaches(ctx, a, b.IPs[0].String(), 10250) == severed {
					return fmt.Errorf("from %s to %s: severed is to be %v and is not", a.Name, b.Name, severed)
				}
			}
			cut := f != nil && f.Target == a.Name
			if addr := s.Cluster.APIServerAddr(); reaches(ctx, a, addr.Addr().String(), addr.Port()) == cut {
				return fmt.Errorf("from %s to the API server: cut is to be %v and is not", a.Name, cut)
			}
		}
		return nil
	}
	return view{
		disturbed: check,
		back:      func(ctx context.Context, _ *Fault) error { return check(ctx, nil) },
	}
}

// reaches says whether a node can connect within 2 s.
func reaches(ctx context.Context, from *cluster.Node, to string, port uint16) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return from.Command(ctx, "bash", "-c", "exec 3<>/dev/tcp/$0/$1", to, fmt.Sprint(port)).Run() == nil
}

func (s scene) rebootView(*testing.T) view {
	node := func(f *Fault) *cluster.Node {
		for _, n := range s.Cluster.Nodes() {
			if n.Name == f.Target {
				return n
			}
		}
		return nil
	}
	return view{
		disturbed: func(ctx context.Context, f *Fault) error {
			if node(f).Running() || reaches(ctx, s.other(f.Target), node(f).IPs[0].String(), 10250) {
				return errors.New("the node works")
			}
			if !s.Engine(f.Target).Process().Exited() {
				return errors.New("the node's engine runs")
			}
			return nil
		},
		back: func(ctx context.Context, f *Fault) error {
			if s.Engine(f.Target).Process().Exited() {
				return errors.New("the node's engine does not run")
			}
			if _, err := s.Agent(ctx, f.Target); err != nil {
				return err
			}
			address, err := s.address(ctx, "first-"+f.Target)
			if err != nil {
				return err
			}
			if !reaches(ctx, node(f), address, 8080) { // a node reaches its own Pods, whatever the rules
				return fmt.Errorf("Pod first-%s does not serve at %s", f.Target, address)
			}
			return nil
		},
	}
}

// other returns a node of another name that is on.
func (s scene) other(name string) *cluster.Node {
	all := s.Cluster.Nodes()
	return all[slices.IndexFunc(all, func(n *cluster.Node) bool { return n.Name != name && n.Running() })]
}

func (s scene) sandboxView(t *testing.T) view {
	before := map[string]string{}
	for _, n := range s.Cluster.Nodes() {
		eventually(t, "an address of first-"+n.Name, func(ctx context.Context) error {
			address, err := s.address(ctx, "first-"+n.Name)
			before[namespace+"/first-"+n.Name] = address
			return err
		})
	}
	return view{
		waits:     true,
		disturbed: func(context.Context, *Fault) error { return nil }, // kubelet is quick: see back
		back: func(ctx context.Context, f *Fault) error {
			was, ok := before[f.Target]
			if !ok {
				return fmt.Errorf("it met %q, which is none of %v", f.Target, before)
			}
			address, err := s.address(ctx, strings.TrimPrefix(f.Target, namespace+"/"))
			if err == nil && address == was {
				return errors.New("it has the address of before")
			}
			return err
		},
	}
}

// addressView makes two Pods, one after the other, on the node.
func (s scene) addressView(t *testing.T) view {
	pods := 0
	addresses := func(node string) (first, second string) {
		n := s.Cluster.Nodes()[slices.IndexFunc(s.Cluster.Nodes(), func(n *cluster.Node) bool { return n.Name == node })]
		var got [2]string
		for i := range got {
			pods++
			name := fmt.Sprintf("address-%d", pods)
			s.pod(t, name, n)
			eventually(t, "an address of "+name, func(ctx context.Context) error {
				var err error
				got[i], err = s.address(ctx, name)
				return err
			})
			if err := s.Client.CoreV1().Pods(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			eventually(t, name+" to be gone", func(ctx context.Context) error {
				address, err := s.address(ctx, name)
				if apierrors.IsNotFound(err) {
					return nil
				}
				return errors.Join(fmt.Errorf("it is there, with the address %q", address), err)
			})
		}
		return got[0], got[1]
	}
	return view{
		disturbed: func(_ context.Context, f *Fault) error {
			if first, second := addresses(f.Target); first != second {
				return fmt.Errorf("the address %s was not reused: the next is %s", first, second)
			}
			return nil
		},
		back: func(_ context.Context, f *Fault) error {
			if first, second := addresses(f.Target); first == second {
				return fmt.Errorf("the address %s was reused", first)
			}
			return nil
		},
	}
}
