// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"
)

// Target is what Prometheus scrapes.
type Target struct {
	// Job is "policygate-manager" or "policygate-agent", which the queries know.
	Job string
	// Instance is the agent's node, or the manager's Pod.
	Instance string
	// Address is host:port, and Path that of the metrics there; /metrics if it
	// is empty.
	Address, Path string
}

// Options say how to start a Prometheus.
type Options struct {
	// Dir is for its configuration, its data and its log. It must exist.
	Dir string
	// Rules are files with rules, by absolute path.
	Rules   []string
	Targets []Target
	// Interval is how often targets are scraped and rules evaluated, one second
	// or more.
	Interval time.Duration
}

// Prometheus is a server on the loopback.
type Prometheus struct {
	// URL is where it answers, such as "http://127.0.0.1:41234".
	URL string

	process *exec.Cmd
	ended   chan struct{}
	// result is that of the process, once ended is closed.
	result error
	log    *os.File
}

// stopTime is how long Prometheus may take to end by itself.
const stopTime = 15 * time.Second

// Start starts Debian's prometheus and returns once it answers. The caller must
// Stop it. It ends with ctx, too.
func Start(ctx context.Context, o Options) (*Prometheus, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	config, err := configuration(o)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(o.Dir, "prometheus.yml")
	if err := os.WriteFile(file, config, 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(o.Dir, "prometheus.log"))
	if err != nil {
		return nil, err
	}
	p := &Prometheus{URL: "http://" + address, ended: make(chan struct{}), log: log}
	p.process = exec.CommandContext(ctx, "prometheus",
		"--config.file="+file,
		"--storage.tsdb.path="+filepath.Join(o.Dir, "data"),
		"--web.listen-address="+address,
		"--log.level=warn",
	)
	p.process.Stdout, p.process.Stderr = log, log
	p.process.Cancel = func() error { return p.process.Process.Signal(syscall.SIGTERM) }
	p.process.WaitDelay = stopTime
	if err := p.process.Start(); err != nil {
		log.Close()
		return nil, fmt.Errorf("start prometheus (is Debian's package of that name installed?): %w", err)
	}
	go func() {
		p.result = p.process.Wait()
		close(p.ended)
	}()
	if err := p.await(ctx, p.ready); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

// Stop ends the process. It may be called once.
func (p *Prometheus) Stop() error {
	defer p.log.Close()
	if err := p.process.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop prometheus: %w", err)
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopTime):
		return errors.Join(errors.New("prometheus does not end by itself"), p.process.Process.Kill())
	}
}

// AwaitScrapes returns once every target has been scraped; when ctx ends first,
// the error names those that were not.
func (p *Prometheus) AwaitScrapes(ctx context.Context) error { return p.await(ctx, p.scraped) }

// await asks until done returns nil.
func (p *Prometheus) await(ctx context.Context, done func(context.Context) error) error {
	for {
		err := done(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("prometheus has ended (%w); see %s", p.result, p.log.Name())
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (p *Prometheus) ready(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"/-/ready", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("prometheus is not ready: %s", response.Status)
	}
	return nil
}

func (p *Prometheus) scraped(ctx context.Context) error {
	var data struct {
		ActiveTargets []struct {
			ScrapeURL string `json:"scrapeUrl"`
			Health    string `json:"health"`
			LastError string `json:"lastError"`
		} `json:"activeTargets"`
	}
	if err := ask(ctx, p.URL+"/api/v1/targets?state=active", &data); err != nil {
		return err
	}
	if len(data.ActiveTargets) == 0 {
		return errors.New("prometheus has no targets yet")
	}
	var errs []error
	for _, t := range data.ActiveTargets {
		if t.Health != "up" {
			errs = append(errs, fmt.Errorf("%s is %s: %s", t.ScrapeURL, t.Health, t.LastError))
		}
	}
	return errors.Join(errs...)
}

// freeAddress returns an address of the loopback that nobody listens on.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

// configuration returns prometheus.yml.
func configuration(o Options) ([]byte, error) {
	type labelled struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	type job struct {
		Name   string     `json:"job_name"`
		Static []labelled `json:"static_configs"`
	}
	var jobs []job
	indexes := map[string]int{}
	for _, t := range o.Targets {
		i, known := indexes[t.Job]
		if !known {
			i = len(jobs)
			indexes[t.Job] = i
			jobs = append(jobs, job{Name: t.Job})
		}
		labels := map[string]string{"instance": t.Instance}
		if t.Path != "" {
			labels["__metrics_path__"] = t.Path
		}
		jobs[i].Static = append(jobs[i].Static, labelled{Targets: []string{t.Address}, Labels: labels})
	}
	interval := o.Interval.String()
	return yaml.Marshal(map[string]any{
		"global":         map[string]string{"scrape_interval": interval, "evaluation_interval": interval, "scrape_timeout": interval},
		"rule_files":     o.Rules,
		"scrape_configs": jobs,
	})
}
