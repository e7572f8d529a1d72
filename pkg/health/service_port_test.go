// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ownNetwork gives the goroutine's thread a network namespace with a loopback device. The thread ends with the goroutine.
func ownNetwork() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// bench is a ServicePorts in a namespace of its own. Its sockets, and those of its clients, are made by one thread there.
type bench struct {
	t    *testing.T
	s    *ServicePorts
	jobs chan func()

	mu      sync.Mutex
	want    []ServicePort
	healthy bool
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, jobs: make(chan func()), healthy: true}
	up := make(chan error)
	go func() {
		up <- ownNetwork()
		for job := range b.jobs {
			job()
		}
	}()
	if err := <-up; err != nil {
		t.Fatal(err)
	}
	b.s = NewServicePorts(
		func() []ServicePort { b.mu.Lock(); defer b.mu.Unlock(); return b.want },
		func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.healthy },
		slog.New(slog.DiscardHandler),
	)
	listen := b.s.listen
	b.s.listen = func(port uint16) (l net.Listener, err error) {
		b.there(func() { l, err = listen(port) })
		return l, err
	}
	b.s.retry = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for _, w := range b.want {
			if _, err := b.get("127.0.0.1", w.Port); err == nil {
				t.Errorf("port %d answers after the end", w.Port)
			}
		}
		close(b.jobs)
	})
	return b
}

// there runs f in the namespace.
func (b *bench) there(f func()) {
	done := make(chan struct{})
	b.jobs <- func() { defer close(done); f() }
	<-done
}

func (b *bench) set(healthy bool, want ...ServicePort) {
	b.mu.Lock()
	b.want, b.healthy = want, healthy
	b.mu.Unlock()
	b.s.Wake()
}

// get returns the answer of a port as "status weight body".
func (b *bench) get(host string, port uint16) (string, error) {
	var conn net.Conn
	var err error
	b.there(func() { conn, err = net.DialTimeout("tcp", net.JoinHostPort(host, fmt.Sprint(port)), 5*time.Second) })
	if err != nil {
		return "", err
	}
	defer conn.Close()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	r, err := client.Get("http://node/any/path")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return "", err
	}
	if got := r.Header.Get("Content-Type") + r.Header.Get("X-Content-Type-Options"); got != "application/jsonnosniff" {
		b.t.Errorf("headers %v", r.Header)
	}
	return fmt.Sprint(r.StatusCode, " ", r.Header.Get("X-Load-Balancing-Endpoint-Weight"), " ", strings.TrimSpace(string(body))), nil
}

// until waits for an answer; "" is a port that is closed.
func (b *bench) until(port uint16, want string) {
	b.t.Helper()
	var got string
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if got, err = b.get("127.0.0.1", port); got == want && (err == nil) == (want != "") {
			return
		}
	}
	b.t.Fatalf("port %d answers %q, %v; want %q", port, got, err, want)
}

func text(code, n int, name string, healthy bool) string {
	return fmt.Sprintf(`%d %d {"service":{"namespace":"ns","name":%q},"localEndpoints":%d,"serviceProxyHealthy":%t}`, code, n, name, n, healthy)
}

func TestServicePorts(t *testing.T) {
	b := newBench(t)
	a, c := ServicePort{"ns", "a", 30001, 2}, ServicePort{"ns", "c", 30002, 0}
	b.set(true, a, c)
	b.until(30001, text(200, 2, "a", true))
	b.until(30002, text(503, 0, "c", true))
	if got, err := b.get("::1", 30001); err != nil || got != text(200, 2, "a", true) {
		t.Errorf("over IPv6: %q, %v", got, err)
	}

	b.set(false, a, c)
	b.until(30001, text(503, 2, "a", false))

	// Counts change in place; two Services that swap their ports find them free.
	a.Local, a.Port, c.Port = 0, 30002, 30001
	b.set(true, a, c)
	b.until(30002, text(503, 0, "a", true))
	b.until(30001, text(503, 0, "c", true))
	if got := b.s.Conditions(); len(got) > 0 {
		t.Errorf("conditions %v", got)
	}

	b.set(true, a)
	b.until(30001, "")
	b.until(30002, text(503, 0, "a", true))
}

// A port that somebody else has is a condition until it is free.
func TestServicePortThatIsTaken(t *testing.T) {
	b := newBench(t)
	var l net.Listener
	var err error
	b.there(func() { l, err = net.Listen("tcp", ":30001") })
	if err != nil {
		t.Fatal(err)
	}
	b.set(true, ServicePort{"ns", "a", 30001, 1}, ServicePort{"ns", "b", 30002, 1})
	b.until(30002, text(200, 1, "b", true))
	got := b.s.Conditions()
	if len(got) != 1 || got[0].Service != "ns/a" || !strings.Contains(got[0].Err.Error(), "address already in use") || got[0].Since.IsZero() {
		t.Errorf("conditions %v", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b.until(30001, text(200, 1, "a", true))
	if got := b.s.Conditions(); len(got) > 0 {
		t.Errorf("conditions %v", got)
	}
}
