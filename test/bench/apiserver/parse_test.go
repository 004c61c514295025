// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/test/installation"
)

// entry is a line of the audit log.
func entry(at, verb, uri, account, pod, resource, name string) string {
	return `{"verb":"` + verb + `","requestURI":"` + uri + `","requestReceivedTimestamp":"2026-11-22T06:00:` + at + `Z",` +
		`"user":{"username":"system:serviceaccount:policygate-system:` + account + `","extra":{"` + podNameExtra + `":["` + pod + `"]}},` +
		`"objectRef":{"resource":"` + strings.ReplaceAll(resource, "/", `","subresource":"`) + `","namespace":"n","name":"` + name + `"},` +
		`"responseStatus":{"code":200}}` + "\n"
}

func second(s string) time.Time {
	at, err := time.Parse(time.RFC3339Nano, "2026-11-22T06:00:"+s+"Z")
	if err != nil {
		panic(err)
	}
	return at
}

func TestAuditLog(t *testing.T) {
	const policies, patch = "/apis/networking.k8s.io/v1/networkpolicies", "/api/v1/namespaces/n/pods/p/status?fieldManager=x"
	log := entry("01", "list", policies, installation.ManagerAccount, "m-0", "networkpolicies", "") +
		entry("02.5", "list", policies, installation.ManagerAccount, "m-0", "networkpolicies", "") +
		entry("02", "list", policies+"?limit=500&resourceVersion=0", installation.ManagerAccount, "m-0", "networkpolicies", "") +
		entry("02", "list", policies, installation.ManagerAccount, "m-1", "networkpolicies", "") +
		entry("03", "patch", patch, installation.AgentAccount, "a-1", "pods/status", "p") +
		entry("03.1", "patch", patch, installation.AgentAccount, "a-1", "pods/status", "p") +
		entry("03.2", "patch", patch, installation.AgentAccount, "a-1", "pods/status", "late") +
		entry("04", "update", "/x", installation.ManagerAccount, "m-0", "leases", "l") +
		entry("04", "create", "/x", installation.ManagerAccount, "m-0", "tokenreviews", "") +
		entry("09", "update", "/x", installation.ManagerAccount, "m-0", "leases", "l") +
		`{"verb":"half writ`
	requests, err := parseAudit(strings.NewReader(log), second("01"), second("05"))
	if err != nil {
		t.Fatal(err)
	}
	wantCounts := []Requests{
		{installation.AgentAccount, "patch", "pods/status", 3},
		{installation.ManagerAccount, "list", "networkpolicies", 4},
		{installation.ManagerAccount, "update", "leases", 1},
		{installation.ManagerAccount, "create", "tokenreviews", 1},
	}
	if diff := cmp.Diff(wantCounts, countRequests(requests)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	wantLists := []Lists{
		{Replica: "m-0", Kind: "networkpolicies", Count: 2, Closest: 1500 * time.Millisecond},
		{Replica: "m-1", Kind: "networkpolicies", Count: 1},
	}
	if diff := cmp.Diff(wantLists, countLists(requests)); diff != "" {
		t.Errorf("lists (-want +got):\n%s", diff)
	}
	writes := 0
	for i := range requests {
		if requests[i].writes() {
			writes++
		}
	}
	if writes != 3 {
		t.Errorf("%d writes, want the 3 patches: Leases and reviews are none", writes)
	}
	gated := []Gated{
		{Namespace: "n", Name: "p", Addressed: second("02"), Opened: second("03")},
		{Namespace: "n", Name: "late", Addressed: second("02"), Opened: second("09")},
	}
	if diff := cmp.Diff(map[int]int{2: 1}, patchesOf(requests, gated)); diff != "" {
		t.Errorf("patches of Pods that were open within %s (-want +got):\n%s", promptly, diff)
	}
	if got := reviews(requests); len(got) != 1 || len(got["m-0"]) != 1 {
		t.Errorf("reviews %v, want one of m-0", got)
	}
}

func TestAMalformedAuditLogIsAnError(t *testing.T) {
	if _, err := parseAudit(strings.NewReader("{\"verb\":1}\n"), second("00"), second("59")); err == nil {
		t.Error("no error")
	}
}

func TestBusiest(t *testing.T) {
	cases := map[string]struct {
		at   []string
		want int
	}{
		"nothing":                         {nil, 0},
		"one":                             {[]string{"01"}, 1},
		"a second apart is not within it": {[]string{"01", "02", "03"}, 1},
		"the fullest second counts":       {[]string{"01", "05", "05.2", "05.9", "06.1", "09"}, 3},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var times []time.Time
			for _, at := range tc.at {
				times = append(times, second(at))
			}
			if got := busiest(times); got != tc.want {
				t.Errorf("%d, want %d", got, tc.want)
			}
		})
	}
}

func TestPercentile(t *testing.T) {
	var gated []Gated
	for i := range 100 {
		gated = append(gated, Gated{Held: i%2 == 0, Addressed: second("00"), Opened: second("00").Add(time.Duration(i+1) * time.Millisecond)})
	}
	gated = append(gated, Gated{Held: true, Addressed: second("00")}) // still shut
	all := func(*Gated) bool { return true }
	for p, want := range map[float64]int{0: 1, 0.5: 51, 0.99: 100, 1: 100} {
		if got, n := Percentile(gated, p, all); got.Milliseconds() != int64(want) || n != 100 {
			t.Errorf("percentile %g is %s of %d, want %d ms of 100", p, got, n, want)
		}
	}
	if _, n := Percentile(gated, 0.5, func(g *Gated) bool { return g.Held }); n != 50 {
		t.Errorf("%d are kept, want 50", n)
	}
	if got, n := Percentile(nil, 0.5, all); got != 0 || n != 0 {
		t.Errorf("%s of %d, want nothing of nothing", got, n)
	}
}
