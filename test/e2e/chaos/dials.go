// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/policygate/policygate/test/e2e/chaos/packet"
)

// dial is one line of the probe's log.
type dial struct {
	At      int64  `json:"at"`
	Addr    string `json:"addr"`
	OK      bool   `json:"ok"`
	Refused bool   `json:"refused"`
	Error   string `json:"error"`
	Micros  int64  `json:"micros"`
}

// parseDials reads the probe's log.
func parseDials(log []byte) ([]dial, error) {
	var all []dial
	decoder := json.NewDecoder(bytes.NewReader(log))
	for decoder.More() {
		var d dial
		if err := decoder.Decode(&d); err != nil {
			return all, fmt.Errorf("%w in %q", err, log)
		}
		all = append(all, d)
	}
	return all, nil
}

// look returns what a dial shows, and Recovered if the same address let the
// client in later.
func (d dial) look(from, to Party, later []dial) Look {
	sent := time.Unix(0, d.At)
	l := Look{
		From: from, To: to, Port: servedPort, Want: true, Detail: "dialled by the client: " + d.Error, Dialled: true,
		Sent: sent, Answered: sent.Add(time.Duration(d.Micros) * time.Microsecond),
	}
	switch {
	case d.OK:
		l.Got = packet.Admitted
	case d.Refused:
		l.Got = packet.Refused
	}
	for _, next := range later {
		if next.Addr == d.Addr && next.OK && !d.OK {
			l.Recovered = time.Unix(0, next.At).Sub(l.Sent)
			break
		}
	}
	return l
}

// dialled judges what the client of a Job dialled, once it has ended.
func (o *observer) dialled(ctx context.Context, l Life) {
	if !l.Open() || l.RoleOf() == Server {
		return
	}
	opening := l.Opening()
	o.record.tell(func(r *Report) { r.Dials++ })
	if l.Pod.Status.Phase == corev1.PodSucceeded {
		o.record.tell(func(r *Report) { r.Proven++ })
		return
	}
	dials, err := o.log(ctx, l)
	if err != nil || len(dials) == 0 {
		// A node that loses its power ends Pods without a word, and an API server
		// that is away cannot be asked.
		if ctx.Err() == nil && !o.record.past().Disturbed(l.Opened, time.Now()) {
			o.record.lost("Pod %s/%s failed and has no log: %v; %s", l.Pod.Namespace, l.Pod.Name, err, states(l.Pod))
		}
		return
	}
	from := l.Party()
	from.Gone = time.Time{} // its end is what tells of the dial
	for i, d := range dials {
		look := o.dialLook(d, from, l.Pod.Namespace, dials[i+1:])
		if look.Got == packet.Admitted {
			continue
		}
		if l.heldOut() && look.Sent.Before(opening.since()) {
			look.Unproven = "the hold had run into its timeout, and the gate opened later"
		}
		o.judge(ctx, opening, look)
	}
}

// dialLook is the look of one dial: at whom, and whether it proves anything.
func (o *observer) dialLook(d dial, from Party, namespace string, later []dial) Look {
	addr, err := netip.ParseAddrPort(d.Addr)
	if err != nil {
		return Look{Want: true, From: from, Unproven: "the client dialled no address"}
	}
	servers := o.record.pods(func(l Life) bool {
		return l.Pod.Namespace == namespace && slices.ContainsFunc(l.Pod.Status.PodIPs, func(ip corev1.PodIP) bool {
			return ip.IP == addr.Addr().String()
		})
	})
	if len(servers) == 0 {
		look := d.look(from, Party{IP: addr.Addr()}, later)
		look.Unproven = "the server is gone"
		return look
	}
	// An address's newest owner.
	server := servers[len(servers)-1]
	look := d.look(from, server.Party(), later)
	look.To.IP = addr.Addr()
	// Its start is in whole seconds, rounded down, and then it begins to listen.
	if running := server.Running(); running.IsZero() || look.Sent.Before(running.Add(2*time.Second)) {
		look.Unproven = "the server's container did not run yet"
	}
	// The policies may have changed since the Job was made up.
	if !o.record.intentAt(namespace, look.Sent).Allows(from.Role, server.RoleOf(), servedPort) {
		look.Unproven = "the client is not to be let in any more"
	}
	return look
}

// log returns what a Pod dialled.
func (o *observer) log(ctx context.Context, l Life) ([]dial, error) {
	var last error
	for range 5 {
		calling, cancel := context.WithTimeout(ctx, callTimeout)
		log, err := o.client.CoreV1().Pods(l.Pod.Namespace).GetLogs(l.Pod.Name, &corev1.PodLogOptions{Container: containerName}).DoRaw(calling)
		cancel()
		if err == nil {
			var dials []dial
			if dials, err = parseDials(log); err == nil && len(dials) > 0 {
				return dials, nil
			}
		}
		last = err
		select {
		case <-ctx.Done():
			return nil, errors.Join(last, ctx.Err())
		case <-time.After(time.Second):
		}
	}
	return nil, last
}

// states says where a Pod's containers stand.
func states(p *corev1.Pod) string {
	parts := []string{fmt.Sprintf("phase %s %s", p.Status.Phase, p.Status.Reason)}
	for _, s := range append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...) {
		state, _ := json.Marshal(s.State)
		parts = append(parts, fmt.Sprintf("%s %s", s.Name, state))
	}
	return strings.Join(parts, ", ")
}
