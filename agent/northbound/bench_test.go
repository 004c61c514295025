// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/policygate/policygate/api/flow"
)

// large has Pods, three to a policy, each of which lets in some peers at one port,
// with the ACLs of nodes of 30 Pods each.
func large(pods, policies, peers int) *database {
	d := newDatabase()
	d.put(tableGlobal, "global", map[string]any{})
	rows := func(table string, of map[string]*testRow) {
		d.next(table)
		d.view.tables[table] = of
	}
	ports, groups, sets, acls := map[string]*testRow{}, map[string]*testRow{}, map[string]*testRow{}, map[string]*testRow{}
	row := func(of map[string]*testRow, name string, columns map[string]any) {
		columns["name"] = name
		of[name] = &testRow{name, columns}
	}
	address := func(i int) string { return fmt.Sprintf("10.%d.%d.%d", 16+i>>16, i>>8&0xff, i&0xff) }
	var all []string
	for i := range pods {
		name := fmt.Sprintf("p%d.ns", i)
		all = append(all, name)
		row(ports, name, map[string]any{"addresses": []string{"0a:00:00:00:00:01 " + address(i)}, "external_ids": map[string]string{"pod": fmt.Sprint("ns/p", i)}})
	}
	nodes := (pods + 29) / 30
	for n := range nodes {
		name := fmt.Sprint("node.n", n)
		var ids []string
		for i, match := range []string{"ip4.src == 192.168.1.%d && ip4.dst == $%s_ip4", "ip4.dst == 192.168.1.%d && ip4.src == $%s_ip4"} {
			id := fmt.Sprint(name, i)
			ids = append(ids, id)
			row(acls, id, map[string]any{
				"direction": []string{"to-lport", "from-lport"}[i], "priority": 3000, "match": fmt.Sprintf(match, n, name), "action": "allow-related",
			})
		}
		row(groups, name, map[string]any{"ports": all[n*30 : min(pods, n*30+30)], "acls": ids, "external_ids": map[string]string{"np": fmt.Sprint("node/n", n)}})
	}
	for i := range policies {
		name := fmt.Sprintf("np%d.ns", i)
		allow, except := name+".ingress.allow.IPv4.0", name+".ingress.except.IPv4.0"
		var members []string
		for k := range peers {
			members = append(members, address((i*7+k)%pods))
		}
		row(sets, allow, map[string]any{"addresses": members, "external_ids": map[string]string{"np": fmt.Sprintf("ns/np%d/ingress", i)}})
		row(sets, except, map[string]any{"external_ids": map[string]string{"np": fmt.Sprintf("ns/np%d/ingress", i)}})
		row(acls, name+".drop", map[string]any{
			"direction": "to-lport", "priority": 2000, "match": "outport == @" + name + " && ip", "action": "drop", "tier": 2,
		})
		row(acls, name+".allow", map[string]any{
			"direction": "to-lport", "priority": 2001, "action": "allow-related", "tier": 2,
			"match": "outport == @" + name + " && ip && ip4.src == $" + allow + " && ip4.src != $" + except + " && tcp.dst == 80",
		})
		row(groups, name, map[string]any{
			"ports": []string{all[3*i%pods], all[(3*i+1)%pods], all[(3*i+2)%pods]}, "acls": []string{name + ".drop", name + ".allow"},
			"external_ids": map[string]string{"np": fmt.Sprint("ns/np", i)},
		})
	}
	rows(tablePort, ports)
	rows(tableGroup, groups)
	rows(tableAddress, sets)
	rows(tableACL, acls)
	d.logicalSwitch("ovn-default", all...)
	return d
}

// BenchmarkModel tells what a change and a question cost: 300 Pods, 100 policies of
// 200 peers each, and ten times the Pods and policies.
func BenchmarkModel(b *testing.B) {
	for _, times := range []int{1, 10} {
		pods, policies := 300*times, 100*times
		d := large(pods, policies, 200)
		b.Run(fmt.Sprintf("first/%dx", times), func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var f *follower
			for b.Loop() {
				f = newFollower()
				f.follow(d.view)
				f.model.sort()
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
			runtime.KeepAlive(f)
		})
		f := newFollower()
		f.follow(d.view)
		b.Run(fmt.Sprintf("peer/%dx", times), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 1))
			var took []time.Duration
			for b.Loop() {
				b.StopTimer()
				set := fmt.Sprintf("np%d.ns.ingress.allow.IPv4.0", r.IntN(policies))
				members := slices.Clone(d.view.tables[tableAddress][set].Strings("addresses"))
				members[r.IntN(len(members))] = fmt.Sprintf("10.99.0.%d", r.IntN(256))
				d.with(tableAddress, set, map[string]any{"addresses": members})
				b.StartTimer()
				began := time.Now()
				f.follow(d.view)
				took = append(took, time.Since(began))
			}
			report(b, took)
		})
		b.Run(fmt.Sprintf("policy/%dx", times), func(b *testing.B) {
			// As for each update of a policy: its ACLs are other rows.
			r := rand.New(rand.NewPCG(1, 1))
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				name := fmt.Sprintf("np%d.ns", r.IntN(policies))
				var ids []string
				for _, old := range d.view.tables[tableGroup][name].Strings("acls") {
					id := fmt.Sprint(old, ".", i)
					d.put(tableACL, id, d.view.tables[tableACL][old].columns)
					d.drop(tableACL, old)
					ids = append(ids, id)
				}
				d.with(tableGroup, name, map[string]any{"acls": ids})
				b.StartTimer()
				began := time.Now()
				f.follow(d.view)
				f.model.verdict(tcp("10.16.0.1", "10.16.0.2", 80))
				took = append(took, time.Since(began))
			}
			report(b, took)
		})
		b.Run(fmt.Sprintf("question/%dx", times), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 1))
			answers := map[flow.Answer]int{}
			for b.Loop() {
				i, k := r.IntN(pods), r.IntN(pods)
				v := f.model.verdict(tcp(fmt.Sprintf("10.16.%d.%d", i>>8, i&0xff), fmt.Sprintf("10.16.%d.%d", k>>8, k&0xff), 80))
				answers[v.Answer]++
			}
			if answers[flow.Allowed]+answers[flow.Denied] == 0 {
				b.Errorf("%v: want verdicts", answers)
			}
		})
		b.Run(fmt.Sprintf("linked/%dx", times), func(b *testing.B) {
			var services []Service
			for i := range policies {
				services = append(services, Service{
					VIPs: addresses(fmt.Sprintf("10.96.%d.%d", i>>8, i&0xff)), Backends: addresses(fmt.Sprintf("10.16.%d.%d", i>>8, i&0xff)),
				})
			}
			for b.Loop() {
				f.model.linked(services)
			}
		})
	}
}

// report tells the median and the 95th percentile.
func report(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*95/100].Microseconds()), "p95-µs")
}
