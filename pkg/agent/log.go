// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// remembered is how many warnings and errors `fairlead status` shows.
const remembered = 20

// logged is a warning or an error as it was logged.
type logged struct {
	time    time.Time
	level   slog.Level
	message string
}

// memory counts all messages and keeps the last warnings and errors.
type memory struct {
	mu     sync.Mutex
	last   []logged
	counts map[string]uint64
}

func (m *memory) add(r slog.Record, text func() string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts[r.Level.String()]++
	if r.Level < slog.LevelWarn {
		return
	}
	m.last = append(m.last, logged{r.Time, r.Level, text()})
	if len(m.last) > remembered {
		m.last = m.last[len(m.last)-remembered:]
	}
}

func (m *memory) read() (last []logged, counts map[string]uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	counts = make(map[string]uint64, len(m.counts))
	for level, n := range m.counts {
		counts[level] = n
	}
	return append([]logged(nil), m.last...), counts
}

// newLog returns a logger to out that remembers what it logs. JSON or text by the config.
func newLog(c *Config, out io.Writer) (*slog.Logger, *memory) {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	var h slog.Handler = slog.NewTextHandler(out, options)
	if c.LogFormat == "json" {
		h = slog.NewJSONHandler(out, options)
	}
	m := &memory{counts: map[string]uint64{}}
	return slog.New(&rememberingHandler{Handler: h, memory: m}), m
}

// rememberingHandler hands every record on, and to a memory.
type rememberingHandler struct {
	slog.Handler
	memory *memory
	prefix string // attributes of With, as text
	group  string
}

func (h *rememberingHandler) Handle(ctx context.Context, r slog.Record) error {
	h.memory.add(r, func() string {
		var b strings.Builder
		b.WriteString(r.Message)
		b.WriteString(h.prefix)
		r.Attrs(func(a slog.Attr) bool {
			fmt.Fprintf(&b, " %s%s=%v", h.group, a.Key, a.Value)
			return true
		})
		return b.String()
	})
	return h.Handler.Handle(ctx, r)
}

func (h *rememberingHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	prefix := h.prefix
	for _, a := range attrs {
		prefix += fmt.Sprintf(" %s%s=%v", h.group, a.Key, a.Value)
	}
	return &rememberingHandler{Handler: h.Handler.WithAttrs(attrs), memory: h.memory, prefix: prefix, group: h.group}
}

func (h *rememberingHandler) WithGroup(name string) slog.Handler {
	return &rememberingHandler{Handler: h.Handler.WithGroup(name), memory: h.memory, prefix: h.prefix, group: h.group + name + "."}
}
