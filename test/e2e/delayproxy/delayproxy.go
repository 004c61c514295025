// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package delayproxy stands between a client and the API server and delivers
// the watch events of one kind late, in order and whole, as a slow network or a
// busy server would; or leaves a gap in them, after which the client has to list
// anew. Everything else passes at once, consistent lists too.
package delayproxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Proxy serves until Close.
type Proxy struct {
	server   *http.Server
	listener net.Listener
	resource string

	mu sync.Mutex // guards the following
	// interrupted is true while nothing of the resource passes.
	interrupted bool
	// expired is true once a watch would have to begin before the gap.
	expired bool
	watches map[io.Closer]struct{}
}

// Start listens at a free port of host, with a certificate signed by the
// cluster's authority, whose ca.crt and ca.key are in pkiDir. Watches whose path
// ends in resource, such as "networkpolicies", are late by delay.
func Start(ctx context.Context, host, pkiDir, target, resource string, delay time.Duration) (*Proxy, error) {
	to, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	certificate, roots, err := issue(pkiDir, host)
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: listener, resource: resource, watches: map[io.Closer]struct{}{}}
	p.server = &http.Server{
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 10 * time.Second,
		Handler: p.gap(&httputil.ReverseProxy{
			Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host },
			Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true},
			FlushInterval: -1,
			ModifyResponse: func(r *http.Response) error {
				if p.concerns(r.Request.URL) && isWatch(r.Request.URL.Query()) {
					r.Body = p.watched(late(r.Body, delay))
				}
				return nil
			},
		}),
	}
	go p.server.ServeTLS(listener, "", "") //nolint:errcheck // ends with Close
	return p, nil
}

// Port is where it listens.
func (p *Proxy) Port() int { return p.listener.Addr().(*net.TCPAddr).Port }

// Close ends it and every watch that goes through it.
func (p *Proxy) Close() error { return p.server.Close() }

// Interrupt ends every watch of the resource and lets none of it pass, lists
// neither. Resume lets all pass again, but answers the watches that would go on
// where they were interrupted that this is too long ago, until one has listed.
func (p *Proxy) Interrupt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.interrupted, p.expired = true, true
	for w := range p.watches {
		_ = w.Close() // the reader is told
	}
	clear(p.watches)
}

// Resume ends what Interrupt began.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.interrupted = false
}

func (p *Proxy) concerns(u *url.URL) bool { return strings.HasSuffix(u.Path, "/"+p.resource) }

// gap answers what Interrupt forbids, and passes on the rest.
func (p *Proxy) gap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.concerns(r.URL) {
			if refusal := p.refusal(r.URL.Query()); refusal != nil {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(int(refusal.ErrStatus.Code))
				_ = json.NewEncoder(w).Encode(refusal.ErrStatus) // the client has gone, then
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func (p *Proxy) refusal(q url.Values) *apierrors.StatusError {
	p.mu.Lock()
	defer p.mu.Unlock()
	// A list, or a watch that begins with one.
	anew := !isWatch(q) || q.Get("sendInitialEvents") == "true"
	switch {
	case p.interrupted:
		return apierrors.NewGenericServerResponse(http.StatusServiceUnavailable, "get", schema.GroupResource{Resource: p.resource}, "", "interrupted", 1, false)
	case p.expired && !anew:
		return apierrors.NewResourceExpired("too old resource version")
	}
	p.expired = p.expired && !anew
	return nil
}

// watched returns body such that Interrupt ends it.
func (p *Proxy) watched(body io.ReadCloser) io.ReadCloser {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.interrupted { // since it was asked for
		_ = body.Close() // the reader is told
	}
	r, w := io.Pipe()
	p.watches[body] = struct{}{}
	go func() {
		_, err := io.Copy(w, body)
		w.CloseWithError(err)
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.watches, body)
	}()
	return readEnd{r, body}
}

// readEnd reads from a pipe and closes what feeds it, too.
type readEnd struct {
	*io.PipeReader
	source io.Closer
}

// Close implements io.Closer.
func (e readEnd) Close() error { return errors.Join(e.PipeReader.Close(), e.source.Close()) }

func isWatch(q url.Values) bool {
	return q.Get("watch") == "true" || q.Get("watch") == "1"
}

// chunk is a part of a body and when it may be seen.
type chunk struct {
	due  time.Time
	data []byte
	err  error
}

type lateBody struct {
	io.Closer
	chunks <-chan chunk
	rest   chunk
}

// late returns body with every part of it delayed.
func late(body io.ReadCloser, delay time.Duration) io.ReadCloser {
	// More than a test's watch ever holds back.
	chunks := make(chan chunk, 1<<14)
	go func() {
		defer close(chunks)
		for {
			buffer := make([]byte, 32<<10)
			n, err := body.Read(buffer)
			chunks <- chunk{due: time.Now().Add(delay), data: buffer[:n], err: err}
			if err != nil {
				return
			}
		}
	}()
	return &lateBody{Closer: body, chunks: chunks}
}

// Read implements io.Reader.
func (b *lateBody) Read(p []byte) (int, error) {
	if len(b.rest.data) == 0 {
		if b.rest.err != nil {
			return 0, b.rest.err
		}
		next, ok := <-b.chunks
		if !ok {
			return 0, io.EOF
		}
		time.Sleep(time.Until(next.due))
		b.rest = next
	}
	n := copy(p, b.rest.data)
	b.rest.data = b.rest.data[n:]
	return n, nil
}

// issue signs a serving certificate for an address.
func issue(dir, host string) (tls.Certificate, *x509.CertPool, error) {
	fail := func(err error) (tls.Certificate, *x509.CertPool, error) {
		return tls.Certificate{}, nil, fmt.Errorf("sign a certificate for %s: %w", host, err)
	}
	authority, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key"))
	if err != nil {
		return fail(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "delayproxy"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		IPAddresses:  []net.IP{net.ParseIP(host)},
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, authority.Leaf, key.Public(), authority.PrivateKey)
	if err != nil {
		return fail(err)
	}
	pemRoots, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return fail(err)
	}
	roots := x509.NewCertPool()
	if block, _ := pem.Decode(pemRoots); block == nil || !roots.AppendCertsFromPEM(pemRoots) {
		return fail(fmt.Errorf("%s/ca.crt holds no certificate", dir))
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots, nil
}
