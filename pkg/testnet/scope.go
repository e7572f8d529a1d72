// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/link"
)

// Scope is where processes run: a network namespace and a cgroup.
type Scope struct {
	NetNS  string // path of the namespace
	Cgroup string // path of the cgroup

	name string // in errors, and what Serve answers with
	net  *Net
	file *os.File
}

// newScope makes a namespace, bound to a file of its own, with its loopback device up, and a cgroup.
func (n *Net) newScope(name, file, cgroup string) (Scope, error) {
	s := Scope{NetNS: filepath.Join(n.Dir, "ns", file), Cgroup: filepath.Join(n.cgroup, cgroup), name: name, net: n}
	if err := os.MkdirAll(s.Cgroup, 0o755); err != nil {
		return s, fmt.Errorf("make cgroup of %s: %w", name, err)
	}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends in the namespace
		made <- s.unshare()
	}()
	if err := <-made; err != nil {
		return s, fmt.Errorf("make network namespace of %s: %w", name, err)
	}
	var err error
	if s.file, err = os.Open(s.NetNS); err != nil {
		return s, err
	}
	h, err := link.OpenAt(s.fd())
	if err != nil {
		return s, err
	}
	defer h.Close()
	return s, h.SetUp("lo", true)
}

// unshare makes the namespace and binds it to its path.
func (s Scope) unshare() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := os.WriteFile(s.NetNS, nil, 0o444); err != nil {
		return err
	}
	return unix.Mount("/proc/thread-self/ns/net", s.NetNS, "", unix.MS_BIND, "")
}

func (s Scope) fd() int { return int(s.file.Fd()) }

// Do runs f on a thread in the namespace; sockets that it makes belong to this process's cgroup.
func (s Scope) Do(f func() error) error { return link.InNamespace(s.fd(), f) }

// close lets go of the namespace.
func (s Scope) close() {
	if s.file != nil {
		_ = s.file.Close()
	}
}

// release ends everything in the scope and removes it.
func (s Scope) release() error {
	s.close()
	err := removeCgroup(s.Cgroup)
	if e := unix.Unmount(s.NetNS, unix.MNT_DETACH); e != nil && !errors.Is(e, unix.EINVAL) && !errors.Is(e, unix.ENOENT) {
		err = errors.Join(err, fmt.Errorf("unmount %s: %w", s.NetNS, e))
	}
	if e := os.Remove(s.NetNS); e != nil && !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// Enter returns a shell command that gives a person a shell in the scope.
func (s Scope) Enter() string {
	return fmt.Sprintf("sh -c 'echo $$ > %s/cgroup.procs; exec nsenter --net=%s %s'", s.Cgroup, s.NetNS, "${SHELL:-sh}")
}

// Process is a command that runs in a scope.
type Process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start runs a command in the scope until it ends by itself, by Stop or Kill, or with the network. Its output goes where cmd says.
func (s Scope) Start(cmd *exec.Cmd) (*Process, error) {
	cgroup, err := os.Open(s.Cgroup)
	if err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", filepath.Base(cmd.Path), s.name, err)
	}
	defer cgroup.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Setpgid: true}
	if err := s.net.starter.start(s.fd(), cmd); err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", filepath.Base(cmd.Path), s.name, err)
	}
	p := &Process{name: fmt.Sprintf("%s in %s", filepath.Base(cmd.Path), s.name), cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Run runs a command in the scope to its end and returns what it wrote to standard output. An error has what it wrote to standard error.
func (s Scope) Run(ctx context.Context, name string, args ...string) ([]byte, error) {
	var out, stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	p, err := s.Start(cmd)
	if err != nil {
		return nil, err
	}
	if err := p.Wait(ctx); err != nil {
		return out.Bytes(), fmt.Errorf("run %s: %w: %s", p.name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out.Bytes(), nil
}

// PID returns the number of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process is gone.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode returns that of a process that is gone; -1 when a signal ended it, or when it runs.
func (p *Process) ExitCode() int {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	default:
		return -1
	}
}

// Wait waits for the end of the process, and kills it when the context ends first.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		p.Kill()
		return ctx.Err()
	}
}

// Kill ends the process at whatever instruction it is, and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // gone already is as good
	<-p.done
}

// Stop asks the process to end and waits for it; the error is its own, and nil when it ended by the signal.
func (p *Process) Stop(ctx context.Context) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	err := p.Wait(ctx)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	return nil
}

// starter starts processes from one thread that is in no namespace for long: a child inherits that of the thread which forks it.
type starter struct {
	jobs chan func()
}

func newStarter() *starter {
	s := &starter{jobs: make(chan func())}
	go func() {
		runtime.LockOSThread() // never unlocked: nothing else may run on this thread
		for job := range s.jobs {
			job()
		}
	}()
	return s
}

func (s *starter) start(ns int, cmd *exec.Cmd) error {
	done := make(chan error)
	s.jobs <- func() {
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- cmd.Start()
	}
	return <-done
}

func (s *starter) close() { close(s.jobs) }
