// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
)

const (
	// headerTimeout, readTimeout and writeTimeout bound a client that does
	// not finish; the last includes the time that the answer takes.
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	writeTimeout  = 40 * time.Second
	idleTimeout   = 30 * time.Second
	// shutdownTimeout bounds the end of requests in flight.
	shutdownTimeout = 3 * time.Second
	// maxHeader bounds the headers; a token takes 1 or 2 KiB.
	maxHeader = 16 << 10
)

// Options are what a Server needs. All fields but Ungated and Log are required.
type Options struct {
	// Address is where to listen, such as "127.0.0.1:9446".
	Address string
	// GetCertificate returns the certificate to present to a client.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	TokenReviews   TokenReviews
	AccessReviews  AccessReviews
	Cluster        Cluster
	Agents         Agents
	// Accounts, Inventory and Sessions are what explanations and diagnoses
	// are made of.
	Accounts  Accounts
	Inventory Inventory
	Sessions  Sessions
	// Northbound says whether OVN's northbound database is asked beside nodes.
	Northbound bool
	// Ungated counts Pods without a gate; nil if nobody does.
	Ungated Ungated
	// ConditionType is that of the readiness gate.
	ConditionType corev1.PodConditionType
	// Version is that of this build, for people.
	Version string
	Clock   clock.PassiveClock
	Log     logr.Logger
}

// Server answers questions over HTTPS, on every replica: agents have a session
// with each.
type Server struct {
	options   Options
	listening atomic.Pointer[net.TCPAddr]
}

// New returns a Server that serves when Start is called.
func New(o Options) *Server { return &Server{options: o} }

// Addr returns where the server listens, or nil if it does not yet.
func (s *Server) Addr() *net.TCPAddr { return s.listening.Load() }

// NeedLeaderElection reports false.
func (s *Server) NeedLeaderElection() bool { return false }

// Start listens and serves until ctx ends. It returns nil then, or the error
// that kept it from serving.
func (s *Server) Start(ctx context.Context) error {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", s.options.Address)
	if err != nil {
		return fmt.Errorf("explain: listen on %q: %w", s.options.Address, err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // one request a connection needs no more
	server := &http.Server{
		Handler:           newHandler(s.options),
		Protocols:         protocols,
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: s.options.GetCertificate},
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader,
		// Clients that do not get as far as to be answered.
		ErrorLog: slog.NewLogLogger(logr.ToSlogHandler(s.options.Log), slog.LevelDebug),
	}
	if addr, ok := listener.Addr().(*net.TCPAddr); ok {
		s.listening.Store(addr)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(listener, "", "") }()
	select {
	case err := <-ended:
		return fmt.Errorf("explain: serve on %q: %w", s.options.Address, err)
	case <-ctx.Done():
	}
	s.listening.Store(nil)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("explain: stop serving on %q: %w", s.options.Address, err)
	}
	return nil
}
