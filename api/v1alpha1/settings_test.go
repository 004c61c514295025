// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func TestParseSettings(t *testing.T) {
	tests := map[string]struct {
		annotations map[string]string
		want        Settings
		// wantErr lists what the error must say; none means no error.
		wantErr []string
	}{
		"no annotations mean the defaults": {
			want: Settings{Hold: "auto", Scope: "peers", Timeout: time.Minute, OnTimeout: "start"},
		},
		"every key is read": {
			annotations: map[string]string{
				KeyHold: "true", KeyScope: "local", KeyTimeout: "1m30s", KeyOnTimeout: "fail",
			},
			want: Settings{Hold: "true", Scope: "local", Timeout: 90 * time.Second, OnTimeout: "fail"},
		},
		"foreign keys are ignored": {
			annotations: map[string]string{"example.com/timeout": "never"},
			want:        DefaultSettings(),
		},
		"the shortest and the longest timeout are valid": {
			annotations: map[string]string{KeyTimeout: "600s"},
			want:        Settings{Hold: "auto", Scope: "peers", Timeout: 10 * time.Minute, OnTimeout: "start"},
		},
		"a number is not a duration": {
			annotations: map[string]string{KeyTimeout: "60"},
			want:        DefaultSettings(),
			wantErr:     []string{KeyTimeout, `"60"`, "from 1s to 10m0s"},
		},
		"a timeout below a second is refused": {
			annotations: map[string]string{KeyTimeout: "999ms"},
			want:        DefaultSettings(),
			wantErr:     []string{KeyTimeout, `"999ms"`},
		},
		"a timeout above ten minutes is refused": {
			annotations: map[string]string{KeyTimeout: "10m1s"},
			want:        DefaultSettings(),
			wantErr:     []string{KeyTimeout, `"10m1s"`},
		},
		"a malformed key leaves the others and every one is named": {
			annotations: map[string]string{
				KeyHold: "yes", KeyScope: "Local", KeyTimeout: "30s", KeyOnTimeout: "",
			},
			want: Settings{Hold: "auto", Scope: "peers", Timeout: 30 * time.Second, OnTimeout: "start"},
			wantErr: []string{
				KeyHold, `"yes"`, `"auto", "true", "false"`,
				KeyScope, `"Local"`, `"peers", "local"`,
				KeyOnTimeout, `""`, `"start", "fail"`,
			},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseSettings(tc.annotations)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			if (err != nil) != (len(tc.wantErr) > 0) {
				t.Fatalf("error = %v, want one that says %q", err, tc.wantErr)
			}
			for _, part := range tc.wantErr {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %s", err, part)
				}
			}
		})
	}
}

func TestSettingsValidate(t *testing.T) {
	if err := DefaultSettings().Validate(); err != nil {
		t.Errorf("the defaults are not valid: %v", err)
	}
	err := Settings{Hold: "auto", Scope: "peers", Timeout: time.Hour, OnTimeout: "start"}.Validate()
	if err == nil || !strings.Contains(err.Error(), "1h0m0s") {
		t.Errorf("a timeout of an hour: error = %v, want one that names it", err)
	}
	if (Settings{}).Validate() == nil {
		t.Error("the zero value is valid, want an error")
	}
}

func TestWantsInjection(t *testing.T) {
	tests := map[string]struct {
		annotations map[string]string
		want        bool
		wantErr     string
	}{
		"none means that the namespace's label decided": {want: true},
		"true":  {annotations: map[string]string{KeyInject: "true"}, want: true},
		"false": {annotations: map[string]string{KeyInject: "false"}},
		"another spelling is an error that names the valid ones": {
			annotations: map[string]string{KeyInject: "False"},
			wantErr:     `metadata.annotations[policygate.io/inject]: Unsupported value: "False": supported values: "true", "false"`,
		},
		"a namespace's value is not a pod's": {
			annotations: map[string]string{KeyInject: InjectNamespace},
			wantErr:     `metadata.annotations[policygate.io/inject]: Unsupported value: "enabled": supported values: "true", "false"`,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := WantsInjection(tc.annotations)
			if got != tc.want {
				t.Errorf("WantsInjection = %t, want %t", got, tc.want)
			}
			text := ""
			if err != nil {
				text = err.Error()
			}
			if text != tc.wantErr {
				t.Errorf("error = %q, want %q", text, tc.wantErr)
			}
		})
	}
}

func FuzzParseSettings(f *testing.F) {
	f.Add("auto", "peers", "60s", "start")
	f.Add("true", "local", "-1ns", "fail")
	f.Add("", "\x00", "9223372036854775807h", "START")
	f.Fuzz(func(t *testing.T, hold, scope, timeout, onTimeout string) {
		s, err := ParseSettings(map[string]string{
			KeyHold: hold, KeyScope: scope, KeyTimeout: timeout, KeyOnTimeout: onTimeout,
		})
		if invalid := s.Validate(); invalid != nil {
			t.Fatalf("settings that were returned are not valid: %v", invalid)
		}
		if err != nil {
			return
		}
		again, err := ParseSettings(s.Annotations())
		if err != nil || again != s {
			t.Fatalf("%+v reads back as %+v, %v", s, again, err)
		}
	})
}

func FuzzOverlay(f *testing.F) {
	f.Add([]byte(`{}`), []byte(`{}`))
	f.Add([]byte(`{"policygate.io/timeout":"90s","policygate.io/hold":"false"}`), []byte(`{"policygate.io/timeout":"1h","policygate.io/inject":"true"}`))
	f.Add([]byte(`{"policygate.io/scope":"local","policygate.io/on-timeout":""}`), []byte(`{"policygate.io/scope":"peers","policygate.io/hold":"\u0000"}`))
	f.Fuzz(func(t *testing.T, namespaceText, podText []byte) {
		var namespace, pod map[string]string
		if json.Unmarshal(namespaceText, &namespace) != nil || json.Unmarshal(podText, &pod) != nil {
			return
		}
		where := field.NewPath("namespace(shop)", "metadata", "annotations")
		under, errs := DefaultSettings().Overlay(namespace, where)
		if err := under.Validate(); err != nil {
			t.Fatalf("the namespace's settings are not valid: %v", err)
		}
		named(t, where, namespace, errs)
		where = field.NewPath("metadata", "annotations")
		over, errs := under.Overlay(pod, where)
		if err := over.Validate(); err != nil {
			t.Fatalf("the Pod's settings are not valid: %v", err)
		}
		named(t, where, pod, errs)
		refused := map[string]bool{}
		for _, err := range errs {
			refused[err.Field] = true
		}
		was, is := under.Annotations(), over.Annotations()
		for key := range is {
			_, says := pod[key]
			if (!says || refused[where.Key(key).String()]) && is[key] != was[key] {
				t.Fatalf("%s is %q: want the namespace's %q, as the Pod says %q", key, is[key], was[key], pod[key])
			}
		}
		if again, errs := over.Overlay(over.Annotations(), where); len(errs) > 0 || again != over {
			t.Fatalf("%+v reads back as %+v, %v", over, again, errs)
		}
		if wanted, err := WantsInjection(pod); wanted && err != nil {
			t.Fatalf("a Pod is to be injected, and refused: %v", err)
		}
	})
}

// named fails if an error does not name its annotation and the value.
func named(t *testing.T, where *field.Path, annotations map[string]string, errs field.ErrorList) {
	t.Helper()
	for _, err := range errs {
		key := strings.TrimSuffix(strings.TrimPrefix(err.Field, where.String()+"["), "]")
		if value, ok := annotations[key]; !ok || err.BadValue != value || err.Detail == "" {
			t.Fatalf("error %q is of %q: want it to name the annotation and its value %q, and what is valid", err, key, value)
		}
	}
}
