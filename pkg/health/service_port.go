// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ServicePort is a Service whose load balancer asks this node for endpoints (spec.healthCheckNodePort).
type ServicePort struct {
	Namespace, Name string
	Port            uint16
	Local           int // ready endpoints on this node
}

func (p ServicePort) String() string { return p.Namespace + "/" + p.Name }

// ServicePorts answers load balancers on the health check ports of Services, with kube-proxy's status codes, header and body
// (pkg/proxy/healthcheck/service_health.go of kubernetes 1.36): 200 while this node has ready endpoints and its agent is alive. That the
// node is being taken out of service does not matter here; /healthz says that.
type ServicePorts struct {
	want    func() []ServicePort
	healthy func() bool
	log     *slog.Logger
	listen  func(port uint16) (net.Listener, error)
	retry   time.Duration // between tries to bind
	wake    chan struct{}

	mu    sync.Mutex
	ports map[string]*servicePort // by namespace/name
}

// servicePort is one port as it is served, or as it cannot be.
type servicePort struct {
	ServicePort
	server   *http.Server // nil while the port cannot be bound
	listener net.Listener // of server
	err      error        // why it cannot be bound
	since    time.Time    // of err
}

// PortCondition is a port that cannot be bound.
type PortCondition struct {
	Service string // namespace/name
	Err     error
	Since   time.Time
}

// NewServicePorts returns a server that serves nothing before Run. want returns the ports that are to be served now, with their
// counts; it is called after each Wake. healthy is the rule of /livez.
func NewServicePorts(want func() []ServicePort, healthy func() bool, log *slog.Logger) *ServicePorts {
	return &ServicePorts{
		want: want, healthy: healthy, log: log, retry: 5 * time.Second, wake: make(chan struct{}, 1), ports: map[string]*servicePort{},
		listen: func(port uint16) (net.Listener, error) { return net.Listen("tcp", fmt.Sprintf(":%d", port)) },
	}
}

// Wake says that what is wanted may have changed.
func (s *ServicePorts) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run serves until the context ends; then all ports are closed.
func (s *ServicePorts) Run(ctx context.Context) error {
	var servers sync.WaitGroup
	defer servers.Wait()
	defer s.sync(nil, &servers)
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-retry.C:
		}
		if s.sync(s.want(), &servers) {
			retry.Reset(s.retry)
		}
	}
}

// sync closes the ports that are not wanted any more, then opens those that are new. True when some are to be tried again.
func (s *ServicePorts) sync(want []ServicePort, servers *sync.WaitGroup) (again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, p := range s.ports {
		if !slices.ContainsFunc(want, func(w ServicePort) bool { return w.String() == name && w.Port == p.Port }) {
			if p.server != nil {
				// The server may not know its listener yet, and the port may be wanted again at once. Nobody can do more about an error.
				_ = errors.Join(p.listener.Close(), p.server.Close())
			}
			delete(s.ports, name)
		}
	}
	for _, w := range want {
		p := s.ports[w.String()]
		if p == nil {
			p = &servicePort{}
			s.ports[w.String()] = p
		}
		p.ServicePort = w
		if p.server == nil {
			s.open(p, servers)
		}
		again = again || p.server == nil
	}
	return again
}

func (s *ServicePorts) open(p *servicePort, servers *sync.WaitGroup) {
	l, err := s.listen(p.Port)
	if err != nil {
		if p.err == nil {
			p.since = time.Now()
			s.log.Warn("health check port of a service cannot be served, trying again", "service", p.String(), "error", err)
		}
		p.err = err
		return
	}
	if p.err != nil {
		s.log.Info("health check port of a service served after failures", "service", p.String())
	}
	p.err = nil
	server := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { s.answer(w, p) }),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
	}
	p.server, p.listener = server, l
	servers.Go(func() {
		err := server.Serve(l)
		if errors.Is(err, http.ErrServerClosed) {
			return
		}
		// The listener is broken: the next round makes another one.
		server.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		if p.server == server {
			p.server, p.err, p.since = nil, err, time.Now()
			s.log.Warn("health check port of a service cannot be served, trying again", "service", p.String(), "error", err)
			s.Wake()
		}
	})
}

func (s *ServicePorts) answer(w http.ResponseWriter, p *servicePort) {
	s.mu.Lock()
	now := p.ServicePort
	s.mu.Unlock()
	var body struct {
		Service struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"service"`
		LocalEndpoints      int  `json:"localEndpoints"`
		ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
	}
	body.Service.Namespace, body.Service.Name = now.Namespace, now.Name
	body.LocalEndpoints, body.ServiceProxyHealthy = now.Local, s.healthy()
	code := http.StatusServiceUnavailable
	if now.Local > 0 && body.ServiceProxyHealthy {
		code = http.StatusOK
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(now.Local))
	w.WriteHeader(code)
	// The only error left is a client that went away.
	_ = json.NewEncoder(w).Encode(body)
}

// Conditions returns the ports that cannot be served, in order of their Services.
func (s *ServicePorts) Conditions() []PortCondition {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []PortCondition
	for name, p := range s.ports {
		if p.err != nil {
			all = append(all, PortCondition{name, p.err, p.since})
		}
	}
	slices.SortFunc(all, func(a, b PortCondition) int { return strings.Compare(a.Service, b.Service) })
	return all
}
