// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/policygate/policygate/api/programmed"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/webhook/inject"
)

func TestParse(t *testing.T) {
	tests := map[string]struct {
		args    []string
		want    options
		wantErr string
	}{
		"defaults": {
			want: options{timeout: time.Minute, file: "/run/policygate/programmed"},
		},
		"all flags": {
			args: []string{"-timeout=90s", "-on-timeout=fail", "-file=/f", "-version"},
			want: options{timeout: 90 * time.Second, failOnTimeout: true, file: "/f", version: true},
		},
		"a timeout without unit":        {args: []string{"-timeout=90"}, wantErr: `"90"`},
		"a timeout of nothing":          {args: []string{"-timeout=0s"}, wantErr: "-timeout 0s: want a duration above 0"},
		"an unknown on-timeout":         {args: []string{"-on-timeout=stop"}, wantErr: `-on-timeout "stop": want start or fail`},
		"an empty file":                 {args: []string{"-file="}, wantErr: "want the path of a file"},
		"an argument that is no flag":   {args: []string{"90s"}, wantErr: `unexpected argument "90s"`},
		"a flag that does not exist":    {args: []string{"-wait"}, wantErr: "-wait"},
		"a single malformed on-timeout": {args: []string{"-on-timeout="}, wantErr: `-on-timeout "": want start or fail`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parse(tc.args, &bytes.Buffer{})
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("error = %v, want one that says %s", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(options{})); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHoldTakesWhatIsInjected(t *testing.T) {
	if exitTimeout != v1alpha1.HoldTimeoutExitCode {
		t.Errorf("exit status at the timeout = %d, the API says %d", exitTimeout, v1alpha1.HoldTimeoutExitCode)
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever}}
	errs := inject.Pod(pod, inject.Namespace{}, inject.Options{
		ConditionType: v1alpha1.ConditionProgrammed,
		Image:         "policygate:test",
		PullPolicy:    corev1.PullNever,
		Defaults: v1alpha1.Settings{
			Hold: v1alpha1.HoldAuto, Scope: v1alpha1.ScopePeers,
			Timeout: 90 * time.Second, OnTimeout: v1alpha1.OnTimeoutFail,
		},
	})
	if len(errs) > 0 {
		t.Fatal(errs.ToAggregate())
	}
	injected := pod.Spec.InitContainers[0]
	o, err := parse(injected.Args, &bytes.Buffer{})
	if err != nil {
		t.Fatalf("arguments %q: %v", injected.Args, err)
	}
	file := pod.Spec.Volumes[0].DownwardAPI.Items[0].Path
	want := options{
		timeout: 90 * time.Second, failOnTimeout: true,
		file: filepath.Join(injected.VolumeMounts[0].MountPath, file),
	}
	if diff := cmp.Diff(want, o, cmp.AllowUnexported(options{})); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
	for _, env := range injected.Env {
		t.Setenv(env.Name, "10.0.0.1")
	}
	if _, err := identity(); err != nil {
		t.Errorf("with the environment that is injected: %v", err)
	}
}

// build returns the path of the binary, built as the image's is.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hold")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

func TestBinaryIsSmallAndStatic(t *testing.T) {
	path := build(t)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	// Every node pulls it before the first gated Pod starts there.
	const limit = 4 << 20
	if info.Size() > limit {
		t.Errorf("the binary has %d bytes, want at most %d", info.Size(), limit)
	}
	binary, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := binary.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, prog := range binary.Progs {
		if prog.Type == elf.PT_INTERP {
			t.Error("the binary asks for a dynamic loader, want a static one")
		}
	}

	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	want := []string{
		"github.com/policygate/policygate/api/programmed",
		"github.com/policygate/policygate/cmd/hold",
	}
	var beyondStd []string
	for pkg := range strings.FieldsSeq(string(out)) {
		if first, _, _ := strings.Cut(pkg, "/"); strings.Contains(first, ".") {
			beyondStd = append(beyondStd, pkg)
		}
	}
	if diff := cmp.Diff(want, beyondStd); diff != "" {
		t.Errorf("packages beyond the standard library (-want +got):\n%s", diff)
	}
}

func TestBinary(t *testing.T) {
	path := build(t)
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		t.Fatal(err)
	}
	id, err := programmed.New("u-1", []string{"10.0.0.7", "fd00::7"}, string(boot))
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"POD_UID=u-1", "POD_IPS=10.0.0.7,fd00::7"}
	tests := map[string]struct {
		args     []string
		env      []string
		content  string
		opens    bool // the gate is opened again and again
		signal   bool
		wantCode int
		wantOut  string
	}{
		"a gate that opens":              {env: env, opens: true, wantOut: "gate opened"},
		"a gate that was opened before":  {env: env, content: id.String(), args: []string{"-timeout=200ms"}, wantOut: "opened before this hold started"},
		"a shut gate, start":             {env: env, args: []string{"-timeout=100ms"}, wantOut: "starting all the same"},
		"SIGTERM":                        {env: env, signal: true, wantCode: 143, wantOut: "told to stop"},
		"no address":                     {env: env[:1], wantCode: 2, wantOut: "pod has no address (want the environment POD_UID"},
		"no UID":                         {env: env[1:], wantCode: 2, wantOut: "pod UID is empty"},
		"an address that is none":        {env: []string{env[0], "POD_IPS=here"}, wantCode: 2, wantOut: `pod address "here"`},
		"a malformed flag":               {env: env, args: []string{"-on-timeout=no"}, wantCode: 2, wantOut: "want start or fail"},
		"the version needs nothing else": {args: []string{"-version"}, wantOut: "\n"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "programmed")
			if err := os.WriteFile(file, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), path, append([]string{"-file=" + file}, tc.args...)...)
			cmd.Env = tc.env
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			var stdout, out bytes.Buffer
			cmd.Stdout = &stdout
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if tc.opens {
				opened := make(chan struct{})
				defer func() { <-opened }()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() {
					defer close(opened)
					for n := uint32(0); ctx.Err() == nil; n++ {
						if err := os.WriteFile(file, []byte(id.Again(n)), 0o600); err != nil {
							t.Error(err)
						}
						time.Sleep(20 * time.Millisecond)
					}
				}()
			}
			if tc.signal {
				// The first line says that the handler is in place.
				first := make([]byte, 1)
				if _, err := io.ReadFull(stderr, first); err != nil {
					t.Fatal(err)
				}
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := out.ReadFrom(stderr); err != nil {
				t.Fatal(err)
			}
			code := 0
			if err := cmd.Wait(); err != nil {
				var exit *exec.ExitError
				if !errors.As(err, &exit) {
					t.Fatal(err)
				}
				code = exit.ExitCode()
			}
			out.Write(stdout.Bytes())
			if code != tc.wantCode {
				t.Errorf("exit status = %d, want %d; it said:\n%s", code, tc.wantCode, &out)
			}
			if !strings.Contains(out.String(), tc.wantOut) {
				t.Errorf("it said %q, want %q in it", &out, tc.wantOut)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, args := range []string{
		"-timeout=90s -on-timeout=fail -file=/f", "-timeout=-1s", "-timeout=9223372036854775807h", "-on-timeout=START", "-file", "-h", "--", "x", "\x00",
	} {
		f.Add(args)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, " ")
		o, err := parse(args, io.Discard)
		if err != nil {
			if diff := cmp.Diff(options{}, o, cmp.AllowUnexported(options{})); diff != "" {
				t.Fatalf("%q is refused (%v) and has options:\n%s", args, err, diff)
			}
			return
		}
		if o.timeout <= 0 || o.file == "" {
			t.Fatalf("%q is taken as %+v", args, o)
		}
	})
}

// A Pod's author says what the environment is. A hold without an identity must
// not run.
func FuzzIdentity(f *testing.F) {
	f.Add("u", "10.0.0.1,fd00::1")
	f.Add("", "")
	f.Add("u;boot=b", ",,")
	f.Add("u", "fe80::1%eth0,300.1.1.1")
	f.Fuzz(func(t *testing.T, uid, ips string) {
		if strings.ContainsRune(uid+ips, 0) {
			return // no environment has it
		}
		t.Setenv("POD_UID", uid)
		t.Setenv("POD_IPS", ips)
		id, err := identity()
		if (err == nil) != (id.String() != "") {
			t.Fatalf("UID %q and addresses %q make %q, %v", uid, ips, id, err)
		}
	})
}
