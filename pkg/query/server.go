// SPDX-License-Identifier: Apache-2.0

package query

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Answers is what an agent can be asked. Each is called per request and reads what is there at that moment.
type Answers struct {
	Status    func() (Status, error)
	Drops     func() (Drops, error)
	Services  func() (Services, error)
	Endpoints func() (Endpoints, error)
	Peers     func() (Peers, error)
}

// Handler serves the answers under every version that this build speaks.
func Handler(a Answers) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/status", answer(a.Status))
	mux.Handle("GET /v1/drops", answer(a.Drops))
	mux.Handle("GET /v1/services", answer(a.Services))
	mux.Handle("GET /v1/endpoints", answer(a.Endpoints))
	mux.Handle("GET /v1/peers", answer(a.Peers))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusNotFound, Failure{Message: fmt.Sprintf("agent does not know %s: it speaks version %d", r.URL.Path, Version)})
	})
	return mux
}

// answer serves one question. A nil ask is a part that this agent has not started yet.
func answer[T any](ask func() (T, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ask == nil {
			reply(w, http.StatusServiceUnavailable, Failure{Message: "agent is starting"})
			return
		}
		v, err := ask()
		if err != nil {
			reply(w, http.StatusInternalServerError, Failure{Message: err.Error()})
			return
		}
		reply(w, http.StatusOK, v)
	})
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// The only error left is a client that went away.
	_ = json.NewEncoder(w).Encode(body)
}

// Listen makes the socket at path with mode 0600 and replaces one that a dead agent left. The caller makes sure that no living agent
// uses the same path.
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old query socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on query socket: %w", err)
	}
	if err := unix.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("set mode of query socket %s: %w", path, err), l.Close())
	}
	return l, nil
}

// Serve answers on l until the context ends, lets running requests finish for at most a second, and closes the connections of the others.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		err := server.Shutdown(grace)
		if errors.Is(err, context.DeadlineExceeded) {
			err = server.Close()
		}
		stopped <- err
	})
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	if err := <-stopped; err != nil {
		return fmt.Errorf("stop serving %s: %w", l.Addr(), err)
	}
	return nil
}
