// SPDX-License-Identifier: Apache-2.0

// Package health answers whether the agent lives and may take traffic, at kube-proxy's paths and with kube-proxy's bodies: load
// balancers, probes and dashboards that know kube-proxy need not learn anything.
//
// livez fails when a loop of the agent has work that it does not get done. It never depends on the API server or on what has been
// synced: a restart cures neither. healthz fails when livez does, and when the node is being taken out of service, so that load
// balancers drain it. readyz fails until the agent has done its first complete pass.
package health

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Timeout is how long a loop may have work queued without getting any of it done. kube-proxy's is twice its sync period of 30 s.
const Timeout = time.Minute

// Health follows the loops and the node. The zero value is not usable; see New.
type Health struct {
	now   func() time.Time
	count func(path string, code int)

	mu       sync.Mutex
	loops    map[string]*loop
	eligible bool
	waiting  func() []string
}

type loop struct {
	queued time.Time // of the oldest work that is not done; zero: none
	done   time.Time // when work was last done
}

// New returns the health of an agent that just starts: alive, eligible, not ready. now tells the time; count is told every answer to
// /healthz and /livez.
func New(now func() time.Time, count func(path string, code int)) *Health {
	return &Health{
		now: now, count: count, loops: map[string]*loop{}, eligible: true,
		waiting: func() []string { return []string{"start"} },
	}
}

// Queued says that the named loop has got work. It must call Done within Timeout.
func (h *Health) Queued(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l := h.loop(name); l.queued.IsZero() {
		l.queued = h.now()
	}
}

// Done says that the named loop has worked off what was queued: applied it, or refused it with a condition, so that one object which
// can never be applied takes no node out of service.
func (h *Health) Done(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.loop(name)
	l.queued, l.done = time.Time{}, h.now()
}

func (h *Health) loop(name string) *loop {
	l := h.loops[name]
	if l == nil {
		l = &loop{}
		h.loops[name] = l
	}
	return l
}

// SetEligible says whether the node may get traffic from load balancers: it is neither being deleted nor about to be by the cluster
// autoscaler.
func (h *Health) SetEligible(eligible bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.eligible = eligible
}

// SetWaiting gives the function that names what the agent still waits for; none means ready.
func (h *Health) SetWaiting(waiting func() []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting = waiting
}

// Stuck returns the names of the loops that are over their time.
func (h *Health) Stuck() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	stuck, _ := h.state(h.now())
	return stuck
}

// state returns the loops that are over their time and when work was last done: by the slowest loop if one is stuck, else by any.
func (h *Health) state(now time.Time) (stuck []string, last time.Time) {
	for name, l := range h.loops {
		late := !l.queued.IsZero() && now.Sub(l.queued) >= Timeout
		switch {
		case late && len(stuck) == 0, late && l.done.Before(last), len(stuck) == 0 && l.done.After(last):
			last = l.done
		}
		if late {
			stuck = append(stuck, name)
		}
	}
	slices.Sort(stuck)
	return stuck, last
}

// body is what kube-proxy answers: its clients look for lastUpdated, currentTime and nodeEligible. lastUpdated is now while healthy.
type body struct {
	LastUpdated  time.Time `json:"lastUpdated"`
	CurrentTime  time.Time `json:"currentTime"`
	NodeEligible *bool     `json:"nodeEligible,omitempty"`
	Healthy      bool      `json:"healthy"`
	Stuck        []string  `json:"stuck,omitempty"` // loops over their time: not kube-proxy's
}

// Handler serves /healthz, /livez and /readyz.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { h.answer(w, "healthz", true) })
	mux.HandleFunc("/livez", func(w http.ResponseWriter, r *http.Request) { h.answer(w, "livez", false) })
	mux.HandleFunc("/readyz", h.ready)
	return mux
}

func (h *Health) answer(w http.ResponseWriter, path string, withNode bool) {
	h.mu.Lock()
	now := h.now()
	stuck, last := h.state(now)
	eligible := h.eligible
	h.mu.Unlock()

	b := body{LastUpdated: last, CurrentTime: now, Healthy: len(stuck) == 0, Stuck: stuck}
	if withNode {
		b.NodeEligible = &eligible
		b.Healthy = b.Healthy && eligible
	}
	code := http.StatusServiceUnavailable
	if b.Healthy {
		code, b.LastUpdated = http.StatusOK, now
	}
	h.count(path, code)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	// The only error left is a client that went away.
	_ = json.NewEncoder(w).Encode(b)
}

func (h *Health) ready(w http.ResponseWriter, _ *http.Request) {
	h.mu.Lock()
	waiting := h.waiting
	h.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if missing := waiting(); len(missing) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, "waiting for %s\n", strings.Join(missing, ", "))
		return
	}
	fmt.Fprintln(w, "ok")
}
