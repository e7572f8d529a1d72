// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// echo answers with what it was asked.
type echo struct {
	mu   sync.Mutex
	last *Request
	file uint64 // inode of the file that came along
	err  error
}

func (e *echo) note(req *Request, f *os.File) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last, e.file = req, 0
	if f != nil {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return err
		}
		e.file = st.Ino
	}
	return e.err
}

// answer sets the error of the next requests; seen returns the last one.
func (e *echo) answer(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.err = err
}

func (e *echo) seen() (*Request, uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last, e.file
}

func (e *echo) Add(_ context.Context, req *Request, f *os.File) (*Result, error) {
	if err := e.note(req, f); err != nil {
		return nil, err
	}
	return &Result{HostLink: req.ContainerID}, nil
}
func (e *echo) Del(_ context.Context, req *Request) error               { return e.note(req, nil) }
func (e *echo) Check(_ context.Context, req *Request, f *os.File) error { return e.note(req, f) }
func (e *echo) GC(_ context.Context, req *Request) error                { return e.note(req, nil) }
func (e *echo) CNIStatus(context.Context) error                         { return e.note(nil, nil) }

func serveEcho(t *testing.T) (*echo, string) {
	t.Helper()
	dir := t.TempDir()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	e, done := &echo{}, make(chan error, 1)
	go func() { done <- Serve(ctx, l, e, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return e, filepath.Join(dir, SocketName)
}

func TestRequestReachesTheAgentWhole(t *testing.T) {
	e, socket := serveEcho(t)
	f, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	valid := []Attachment{}
	for i := range 50000 { // several megabytes: more than one read on either side
		valid = append(valid, Attachment{fmt.Sprintf("%064d", i), "eth0"})
	}
	req := Request{Verb: Add, ContainerID: strings.Repeat("c", 100), Ifname: "eth0", Valid: &valid, Pod: Pod{Namespace: "a", Name: "b"}}
	r, err := Call(socket, req, int(f.Fd()), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	req.API = API()
	last, file := e.seen()
	if d := cmp.Diff(&req, last); d != "" || r.HostLink != req.ContainerID || file != st.Ino {
		t.Errorf("result %v, inode %d (want %d): %s", r, file, st.Ino, d)
	}
	for _, v := range []Verb{Del, GC, Status} {
		if _, err := Call(socket, Request{Verb: v}, -1, time.Second); err != nil {
			t.Errorf("%s: %v", v, err)
		}
	}
	e.answer(Errorf(CodeTaken, "taken"))
	_, err = Call(socket, Request{Verb: Check}, int(f.Fd()), time.Second)
	if got, ok := errors.AsType[*Error](err); !ok || *got != (Error{CodeTaken, "taken"}) {
		t.Errorf("error %v", err)
	}
	e.answer(fmt.Errorf("step: %w", Errorf(CodeAgain, "later")))
	_, err = Call(socket, Request{Verb: Check}, int(f.Fd()), time.Second)
	if got, ok := errors.AsType[*Error](err); !ok || *got != (Error{CodeAgain, "step: later"}) {
		t.Errorf("error %v", err)
	}
}

func TestSocketIsForRootOnly(t *testing.T) {
	_, socket := serveEcho(t)
	st, err := os.Stat(socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := Listen(filepath.Dir(socket)); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("second agent: %v", err)
	}
}

// talk sends raw bytes and returns the answer.
func talk(t *testing.T, socket, body string, fds ...int) string {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	u := c.(*net.UnixConn)
	if body != "" || len(oob) > 0 {
		if _, _, err := u.WriteMsgUnix([]byte(body), oob, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := u.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, _ := c.Read(buf)
	return string(buf[:n])
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestGarbageIsRefusedAndLeaksNothing(t *testing.T) {
	_, socket := serveEcho(t)
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	before := openFiles(t)
	for _, c := range []struct {
		body string
		fds  []int
		want string
	}{
		{"", nil, `"code":`},
		{"{", nil, `"code":6`},
		{"[]", nil, `"code":6`},
		{"\x00\xff", []int{fd}, `"code":6`},
		{`{"api":"cni/9","verb":"DEL"}`, nil, `"code":1`},
		{`{"api":"x","verb":"DEL"}`, []int{fd}, `"code":1`},
		{`{"verb":"DEL"}`, nil, `"code":1`},
		{`{"api":"cni/1","verb":"ADD"}`, nil, `"code":4`},
		{`{"api":"cni/1","verb":"NO"}`, nil, `"code":4`},
		{`{"api":"cni/1","verb":"ADD"}`, []int{fd, fd}, `"code":6`},
		{`{"api":"cni/1","verb":"ADD"}`, []int{fd, fd, fd, fd, fd, fd, fd, fd}, `"code":6`},
		{`{"api":"cni/2","verb":"DEL","later":true}`, nil, `{"api":"cni/1"}`},
	} {
		if got := talk(t, socket, c.body, c.fds...); !strings.Contains(got, c.want) {
			t.Errorf("%q: answer %q lacks %s", c.body, got, c.want)
		}
	}
	for end := time.Now().Add(5 * time.Second); openFiles(t) > before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d open files, %d before", openFiles(t), before)
		}
	}
}

func TestAgentThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, SocketName)
	_, err := Call(socket, Request{Verb: Del}, -1, time.Second)
	if !errors.Is(err, ErrAway) {
		t.Errorf("no socket: %v", err)
	}
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := Call(socket, Request{Verb: Del}, -1, 200*time.Millisecond); !errors.Is(err, ErrSlow) {
		t.Errorf("no answer: %v", err)
	}
	if took := time.Since(began); took < 200*time.Millisecond || took > time.Second {
		t.Errorf("no answer took %s", took)
	}
	go func() {
		if c, err := l.Accept(); err == nil {
			_ = c.Close()
		}
	}()
	if _, err := Call(socket, Request{Verb: Del}, -1, time.Second); !errors.Is(err, ErrSlow) && !errors.Is(err, ErrAway) {
		t.Errorf("closed: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Call(socket, Request{Verb: Del}, -1, time.Second)
	if !errors.Is(err, ErrAway) {
		t.Errorf("old socket: %v", err)
	}
	// What a runtime takes for success must not be in it.
	for _, bad := range []string{"not found", "no such file or directory"} {
		if strings.Contains(Harmless(err.Error()), bad) {
			t.Errorf("error %q", err)
		}
	}
}

func TestLinkNames(t *testing.T) {
	a := Attachment{"abc", "eth0"}.LinkName()
	if len(a) != 14 || !IsLinkName(a) || a == (Attachment{"abc", "eth1"}).LinkName() || a != (Attachment{"abc", "eth0"}).LinkName() {
		t.Errorf("name %s", a)
	}
	for _, foreign := range []string{"flannel.1", "fl", "flow", "fl00000000000g", "fl0000000000000", "eth0"} {
		if IsLinkName(foreign) {
			t.Errorf("%s counts as ours", foreign)
		}
	}
}

func TestTombstones(t *testing.T) {
	dir := t.TempDir()
	if all, err := ReadTombstones(dir); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	a := Attachment{"abc", "eth0"}
	for range 2 {
		if err := WriteTombstone(dir, a); err != nil {
			t.Fatal(err)
		}
	}
	bad := filepath.Join(dir, tombstoneDir, (Attachment{"x", "y"}).LinkName())
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := ReadTombstones(dir)
	if err == nil || len(all) != 1 || all[0].Attachment != a || all[0].At <= 0 || all[0].Boot == "" {
		t.Errorf("%+v, %v", all, err)
	}
	for range 2 {
		if err := all[0].Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := ReadTombstones(dir); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
}

func TestInstall(t *testing.T) {
	bin, conf := filepath.Join(t.TempDir(), "bin"), filepath.Join(t.TempDir(), "net.d")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		if wrote, err := InstallBinary(self, bin); err != nil || wrote != want {
			t.Errorf("binary, time %d: %v, %v", i, wrote, err)
		}
		if wrote, err := WriteConf(conf, "/run/a"); err != nil || wrote != want {
			t.Errorf("configuration, time %d: %v, %v", i, wrote, err)
		}
	}
	if wrote, err := WriteConf(conf, "/run/b"); err != nil || !wrote {
		t.Errorf("changed configuration: %v, %v", wrote, err)
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := InstallBinary(text, bin); err == nil {
		t.Error("a text file is taken for the binary")
	}
	p, err := os.ReadFile(filepath.Join(conf, ConfName))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{`"cniVersion": "1.0.0"`, `"1.1.0"`, `"runDir": "/run/b"`, `"type": "fairlead-cni"`, `"portMappings": true`} {
		if !strings.Contains(string(p), w) {
			t.Errorf("configuration lacks %s:\n%s", w, p)
		}
	}
	for _, f := range []string{"00-other.conf", "05-fairlead.conf", "10-later.conflist", "01-readme.txt"} {
		if err := os.WriteFile(filepath.Join(conf, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rivals, err := Rivals(conf)
	if want := []string{"00-other.conf", "05-fairlead.conf"}; err != nil || !slices.Equal(rivals, want) {
		t.Errorf("rivals %v, %v", rivals, err)
	}
	// Other bytes under the same name are replaced.
	if err := os.WriteFile(filepath.Join(bin, BinaryName), []byte("\x7fELF other"), 0o755); err != nil {
		t.Fatal(err)
	}
	if wrote, err := InstallBinary(self, bin); err != nil || !wrote {
		t.Errorf("binary over another: %v, %v", wrote, err)
	}
	for range 2 {
		if err := Uninstall(bin, conf); err != nil {
			t.Error(err)
		}
	}
	for dir, want := range map[string]int{bin: 0, conf: 4} {
		if all, err := os.ReadDir(dir); err != nil || len(all) != want {
			t.Errorf("%s holds %v, %v", dir, all, err)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, s := range []string{"", "{}", "null", `{"cniVersion":"1.0.0","name":"x","runDir":"/r","runtimeConfig":{"ips":["10.0.0.1/24"],"mac":"02:00:00:00:00:01","portMappings":[{"hostPort":1,"containerPort":2,"protocol":"UDP","hostIP":"::1"}]}}`,
		`{"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]}`, `{"runtimeConfig":{"bandwidth":{"ingressRate":18446744073709551615}}}`, `{"ipam":{}}`} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, stdin []byte, strict bool) {
		c, err := ParseConfig(stdin, strict)
		if err == nil && !strings.HasPrefix(c.RunDir, "/") {
			t.Errorf("run directory %q", c.RunDir)
		}
		if _, ok := errors.AsType[*Error](err); err != nil && !ok {
			t.Errorf("error without a code: %v", err)
		}
		if err == nil && strict {
			if _, err := ParseConfig(stdin, false); err != nil {
				t.Errorf("wrong only when less is looked at: %v", err)
			}
		}
	})
}
