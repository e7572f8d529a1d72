// SPDX-License-Identifier: Apache-2.0

// Package flow keeps what the kernel remembers of traffic true to the Services. Flows expire by a timer in the kernel; what needs the
// agent is here: connected UDP sockets of backends that are gone.
package flow

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/link"
)

// Namespaces opens network namespaces by cookie: those of the node's pods and the node's own.
type Namespaces interface {
	// OpenNamespace returns a file that the caller closes soon, since it keeps the namespace alive. A namespace that is gone or of
	// no pod here is fs.ErrNotExist.
	OpenNamespace(cookie uint64) (*os.File, error)
}

// Stale finds stale sockets: *bpf.StaleSockets.
type Stale interface {
	// Namespaces returns the cookies of the network namespaces that hold stale sockets.
	Namespaces() ([]uint64, error)
	// Destroy destroys those in the calling thread's network namespace, or leaves it to the caller (bpf.StaleSocket.Destroyed).
	Destroy() ([]bpf.StaleSocket, error)
}

// Sockets destroys connected UDP sockets whose backend does not serve any more. The kernel shows and destroys only sockets of the network
// namespace that a thread is in, so it enters each namespace that holds such sockets, and no other.
type Sockets struct {
	stale      Stale
	namespaces Namespaces
	log        *slog.Logger

	mu sync.Mutex // one sweep at a time: two would enter the same namespaces
}

// NewSockets returns a Sockets that does nothing by itself.
func NewSockets(stale Stale, namespaces Namespaces, log *slog.Logger) *Sockets {
	return &Sockets{stale: stale, namespaces: namespaces, log: log}
}

// Sweep destroys all stale sockets of the machine that are in a namespace of this node's, and returns how many. Their owners get
// ECONNABORTED. It looks at the kernel's state only, so sockets that became stale while no agent ran are found by the first Sweep.
//
// An error in one namespace does not keep Sweep from the others; what is left is found by the next call.
func (s *Sockets) Sweep(ctx context.Context) (destroyed int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cookies, err := s.stale.Namespaces()
	if err != nil {
		return 0, fmt.Errorf("find stale sockets: %w", err)
	}
	var errs []error
	for _, cookie := range cookies {
		if err := ctx.Err(); err != nil {
			return destroyed, errors.Join(append(errs, err)...)
		}
		n, err := s.sweep(cookie)
		destroyed += n
		if errors.Is(err, fs.ErrNotExist) {
			// Its sockets go with it.
			s.log.Debug("stale sockets in an unknown namespace", "cookie", cookie)
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("destroy stale sockets in namespace %d: %w", cookie, err))
		}
	}
	return destroyed, errors.Join(errs...)
}

// sweep destroys the stale sockets of one namespace.
func (s *Sockets) sweep(cookie uint64) (destroyed int, err error) {
	ns, err := s.namespaces.OpenNamespace(cookie)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	err = link.InNamespace(int(ns.Fd()), func() error {
		found, err := s.stale.Destroy()
		errs := []error{err}
		for _, f := range found {
			if !f.Destroyed {
				done, err := link.DestroyUDP(link.UDPSocket{Local: f.Local, Remote: f.Remote, V6: f.V6, Ifindex: f.Ifindex, Cookie: f.Cookie})
				if !done {
					errs = append(errs, err)
					continue
				}
			}
			destroyed++
			s.log.Debug("stale socket destroyed", "cookie", cookie, "local", f.Local, "backend", f.Remote)
		}
		return errors.Join(errs...)
	})
	if destroyed > 0 {
		s.log.Info("stale sockets destroyed", "cookie", cookie, "count", destroyed)
	}
	return destroyed, err
}
