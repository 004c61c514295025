// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// podNameExtra is where the API server says whose Pod's token it was given.
const podNameExtra = "authentication.kubernetes.io/pod-name"

// request is an entry of the audit log: one request of one of the product's
// ServiceAccounts.
type request struct {
	Verb string `json:"verb"`
	URI  string `json:"requestURI"`
	User struct {
		Name  string              `json:"username"`
		Extra map[string][]string `json:"extra"`
	} `json:"user"`
	Object struct {
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
	} `json:"objectRef"`
	Response struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
	Received time.Time `json:"requestReceivedTimestamp"`
	Answered time.Time `json:"stageTimestamp"`
}

// account returns the name of the ServiceAccount.
func (r *request) account() string {
	return r.User.Name[strings.LastIndexByte(r.User.Name, ':')+1:]
}

// pod returns the name of the Pod that the token is bound to.
func (r *request) pod() string {
	if names := r.User.Extra[podNameExtra]; len(names) > 0 {
		return names[0]
	}
	return ""
}

// what returns the resource, with the subresource.
func (r *request) what() string {
	if r.Object.Subresource == "" {
		return r.Object.Resource
	}
	return r.Object.Resource + "/" + r.Object.Subresource
}

// writes reports whether the request is one that changes an object, other than
// a Lease. Reviews are questions.
func (r *request) writes() bool {
	switch r.Verb {
	case "get", "list", "watch":
		return false
	}
	switch r.Object.Resource {
	case "leases", "tokenreviews", "subjectaccessreviews":
		return false
	}
	return true
}

// ofBarrier reports whether the request is one of the barrier's LISTs, which
// alone ask without any parameter.
func (r *request) ofBarrier() bool {
	return r.Verb == "list" && !strings.Contains(r.URI, "?") &&
		(r.Object.Resource == "networkpolicies" || r.Object.Resource == "namespaces")
}

// readAudit returns the requests that were received within a span of time, in
// order. The last line may be half written.
func readAudit(path string, from, to time.Time) ([]request, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the audit log: %w", err)
	}
	defer f.Close()
	return parseAudit(f, from, to)
}

func parseAudit(in io.Reader, from, to time.Time) ([]request, error) {
	var out []request
	reader := bufio.NewReaderSize(in, 1<<20)
	for {
		line, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the audit log: %w", err)
		}
		var r request
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("audit log, line %.200q: %w", line, err)
		}
		if !r.Received.Before(from) && r.Received.Before(to) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b request) int { return a.Received.Compare(b.Received) })
	return out, nil
}

// Requests is how often one account asked for one thing.
type Requests struct {
	Account, Verb, Resource string
	Count                   int
}

// countRequests counts by account, verb and resource.
func countRequests(requests []request) []Requests {
	counts := make(map[Requests]int)
	for i := range requests {
		r := &requests[i]
		counts[Requests{Account: r.account(), Verb: r.Verb, Resource: r.what()}]++
	}
	out := make([]Requests, 0, len(counts))
	for r, n := range counts {
		r.Count = n
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Requests) int {
		return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(b.Count, a.Count), cmp.Compare(a.Resource+a.Verb, b.Resource+b.Verb))
	})
	return out
}

// Lists is how often one replica's barrier listed one kind.
type Lists struct {
	Replica, Kind string
	Count         int
	// Closest is the least time between the starts of two of them.
	Closest time.Duration
}

// countLists counts the LISTs of the barriers.
func countLists(requests []request) []Lists {
	type key struct{ replica, kind string }
	found := make(map[key]*Lists)
	last := make(map[key]time.Time)
	for i := range requests {
		r := &requests[i]
		if !r.ofBarrier() {
			continue
		}
		k := key{r.pod(), r.Object.Resource}
		l := found[k]
		if l == nil {
			l = &Lists{Replica: k.replica, Kind: k.kind}
			found[k] = l
		}
		l.Count++
		if before, another := last[k]; another {
			if d := r.Received.Sub(before); l.Closest == 0 || d < l.Closest {
				l.Closest = d
			}
		}
		last[k] = r.Received
	}
	out := make([]Lists, 0, len(found))
	for _, l := range found {
		out = append(out, *l)
	}
	slices.SortFunc(out, func(a, b Lists) int { return cmp.Compare(a.Replica+a.Kind, b.Replica+b.Kind) })
	return out
}

// busiest returns the most that began within a second of another.
func busiest(times []time.Time) int {
	most, first := 0, 0
	for i, at := range times {
		for at.Sub(times[first]) >= time.Second {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}
