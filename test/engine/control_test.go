// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestParseControl(t *testing.T) {
	tests := map[string]struct {
		text    string
		want    Control
		wantErr string
	}{
		"nothing is an engine that behaves": {text: " \n"},
		"every switch": {
			text: `{"lag":"1.5s","podLag":"2s","halfProgrammed":true,"staleSync":"3s","freeze":true,
				"dropPolicies":["db/allow"],"dropAddresses":["10.0.0.1","fd00::1"],"flushPodChains":true,"ipv6Off":true,
				"crash":"betweenSetsAndRules"}`,
			want: Control{
				Lag: metav1.Duration{Duration: 1500 * time.Millisecond}, PodLag: metav1.Duration{Duration: 2 * time.Second},
				HalfProgrammed: true, StaleSync: metav1.Duration{Duration: 3 * time.Second}, Freeze: true,
				DropPolicies: []string{"db/allow"}, DropAddresses: []string{"10.0.0.1", "fd00::1"}, FlushPodChains: true, IPv6Off: true,
				Crash: CrashBetween,
			},
		},
		"an unknown switch":         {text: `{"freese":true}`, wantErr: `unknown field "freese"`},
		"an unknown place":          {text: `{"crash":"before"}`, wantErr: `crash is "before", want "betweenSetsAndRules"`},
		"half of a file":            {text: `{"freeze":`, wantErr: "unexpected EOF"},
		"a negative lag":            {text: `{"lag":"-1s"}`, wantErr: "lag is -1s, want zero or more"},
		"a negative lag of Pods":    {text: `{"podLag":"-1s"}`, wantErr: "podLag is -1s"},
		"a policy without a name":   {text: `{"dropPolicies":["db/"]}`, wantErr: `"db/", want namespace/name`},
		"a policy too many slashes": {text: `{"dropPolicies":["a/b/c"]}`, wantErr: `"a/b/c", want namespace/name`},
		"an address that is none":   {text: `{"dropAddresses":["10.0.0"]}`, wantErr: "10.0.0"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseControl([]byte(tc.text))
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("error %v, want %q in it", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("control (-want +got):\n%s", diff)
			}
		})
	}
}

func TestControlFileIsReadAnewEachTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.json")
	read := ControlFile(path)
	for _, step := range []struct {
		write func() error
		want  bool
	}{
		{func() error { return nil }, false},
		{func() error { return os.WriteFile(path, []byte(`{"freeze":true}`), 0o600) }, true},
		{func() error { return os.Remove(path) }, false},
	} {
		if err := step.write(); err != nil {
			t.Fatal(err)
		}
		c, err := read()
		if err != nil {
			t.Fatal(err)
		}
		if c.Freeze != step.want {
			t.Errorf("freeze is %t, want %t", c.Freeze, step.want)
		}
	}
	if _, err := ControlFile(t.TempDir())(); err == nil {
		t.Error("a directory was read")
	}
	if c, err := ControlFile("")(); err != nil || c.Freeze {
		t.Errorf("no path gives %+v and %v, want the zero value", c, err)
	}
}

func FuzzParseControl(f *testing.F) {
	f.Add([]byte(`{"lag":"1s","dropPolicies":["a/b"],"dropAddresses":["::1"]}`))
	f.Add([]byte(`{"staleSync":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseControl(data)
		if err != nil {
			return
		}
		if _, err := c.faults(); err != nil {
			t.Errorf("accepted control is refused later: %v", err)
		}
	})
}
