// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Check says what is to be checked.
type Check struct {
	// URL is Prometheus' own, such as "http://127.0.0.1:9090".
	URL string
	// Queries are run as of now.
	Queries []Query
	// Window stands in for $__rate_interval, which Grafana makes of what is
	// looked at: what happened longer ago is not seen by rates.
	Window time.Duration
	// Quiet are the queries that may find nothing, by Where, and why.
	Quiet map[string]string
}

// Quiet returns the panels and alerts that may find nothing in a healthy
// cluster, though the metrics that they ask for are there.
func Quiet() map[string]string {
	const absent = "it asks for what is missing"
	const never = "a series is made when it happens first"
	return map[string]string{
		"alert PolicyGateManagerDown":    absent,
		"alert PolicyGateNorthboundDown": "the policy engine is not Kube-OVN",
		"alert PolicyGateNoGateOpens":    "gates open",
		"alert PolicyGateInconclusive":   never,
		"alert PolicyGateLooksFail":      never,
		"alert PolicyGateListsFail":      never,
	}
}

// Run runs the queries and returns an error that names each that failed, that
// found nothing, or that asks for a metric which Prometheus has never seen. A
// result whose values are all "not a number" is nothing.
func (c Check) Run(ctx context.Context) error {
	var names []string
	if err := ask(ctx, c.URL+"/api/v1/label/__name__/values", &names); err != nil {
		return err
	}
	scraped := map[string]bool{}
	for _, n := range names {
		scraped[n] = true
	}
	var errs []error
	for _, q := range c.Queries {
		if err := c.run(ctx, q, scraped); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w\n\t%s", q.Where, err, q.Expr))
		}
	}
	return errors.Join(append(errs, c.rules(ctx))...)
}

// run runs one query.
func (c Check) run(ctx context.Context, q Query, scraped map[string]bool) error {
	for _, n := range MetricNames(q.Expr) {
		if !scraped[n] {
			return fmt.Errorf("no series is called %s", n)
		}
	}
	found, err := c.finds(ctx, q)
	if err == nil && !found && c.Quiet[q.Where] == "" {
		return errors.New("finds nothing")
	}
	return err
}

// finds runs a query: as it is, and of an alert what it measures as well.
func (c Check) finds(ctx context.Context, q Query) (bool, error) {
	seconds := strconv.Itoa(int(c.Window.Seconds())) + "s"
	expr := strings.ReplaceAll(q.Expr, "$__rate_interval", seconds)
	if strings.Contains(expr, "$") {
		return false, errors.New("it has a variable that nothing replaces")
	}
	found, err := c.query(ctx, expr)
	if err != nil || found || !q.Alert {
		return found, err
	}
	return c.query(ctx, Measured(expr))
}

// query says whether an expression finds a number.
func (c Check) query(ctx context.Context, expr string) (bool, error) {
	var data struct {
		ResultType string          `json:"resultType"`
		Result     json.RawMessage `json:"result"`
	}
	if err := ask(ctx, c.URL+"/api/v1/query?"+url.Values{"query": {expr}}.Encode(), &data); err != nil {
		return false, err
	}
	if data.ResultType != "vector" {
		return false, fmt.Errorf("the result is a %s: want a vector", data.ResultType)
	}
	var samples []struct {
		Value [2]any `json:"value"`
	}
	if err := json.Unmarshal(data.Result, &samples); err != nil {
		return false, fmt.Errorf("read the result: %w", err)
	}
	for _, sample := range samples {
		if value, _ := sample.Value[1].(string); value != "NaN" {
			return true, nil
		}
	}
	return false, nil
}

// rules returns an error that names each rule that Prometheus has loaded and
// cannot evaluate.
func (c Check) rules(ctx context.Context) error {
	var data struct {
		Groups []struct {
			Rules []struct {
				Name      string `json:"name"`
				Health    string `json:"health"`
				LastError string `json:"lastError"`
			} `json:"rules"`
		} `json:"groups"`
	}
	if err := ask(ctx, c.URL+"/api/v1/rules", &data); err != nil {
		return err
	}
	var errs []error
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			if r.Health == "err" {
				errs = append(errs, fmt.Errorf("alert %s: Prometheus says %s", r.Name, r.LastError))
			}
		}
	}
	return errors.Join(errs...)
}

// ask gets what Prometheus' API answers, into data.
func ask(ctx context.Context, address string, data any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer := struct {
		Status string `json:"status"`
		Error  string `json:"error"`
		Data   any    `json:"data"`
	}{Data: data}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return fmt.Errorf("read the answer of Prometheus (%s): %w", response.Status, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("prometheus says: %s", answer.Error)
	}
	return nil
}
