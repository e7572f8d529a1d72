// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Handler does what the runtime asks for. Its errors are best an *Error; the namespace, nil where the runtime gave none, is closed by the
// server.
type Handler interface {
	Add(ctx context.Context, req *Request, netns *os.File) (*Result, error)
	Del(ctx context.Context, req *Request) error
	Check(ctx context.Context, req *Request, netns *os.File) error
	GC(ctx context.Context, req *Request) error
	CNIStatus(ctx context.Context) error
}

// Listen makes the agent's socket in the run directory, which it makes as well when it is absent; only root may connect. A socket that
// an agent before this one left is replaced in one step; one that an agent still serves is an error.
func Listen(runDir string) (*net.UnixListener, error) {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	path := filepath.Join(runDir, SocketName)
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: another agent serves it", path), c.Close())
	}
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // the name belongs to whoever renamed last
	if err := os.Chmod(temp, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close(), os.Remove(temp))
	}
	if err := os.Rename(temp, path); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close(), os.Remove(temp))
	}
	return l, nil
}

// Serve answers requests until the context ends, then waits for those under way.
func Serve(ctx context.Context, l *net.UnixListener, h Handler, log *slog.Logger) error {
	var running sync.WaitGroup
	defer running.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // ends Accept below, which reports the outcome
	defer stop()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				return c.Close()
			}
			return nil
		}
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
			log.Warn("accept CNI request", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("accept CNI request: %w", err)
		}
		running.Go(func() {
			// A request that began is finished, also when the agent stops: half an ADD helps nobody.
			if err := serve(context.WithoutCancel(ctx), c, h); err != nil {
				log.Warn("answer CNI request", "error", err)
			}
		})
	}
}

// requestTimeout is how long a client may take to send its request, and the server to send its answer.
const requestTimeout = 10 * time.Second

func serve(ctx context.Context, c *net.UnixConn, h Handler) (err error) {
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	req, netns, err := receive(c)
	if netns != nil {
		defer netns.Close()
	}
	resp := Response{API: API()}
	if err == nil {
		resp.Result, err = handle(ctx, req, netns, h)
	}
	if err != nil {
		resp.Error = AsError(err)
	}
	p, err := json.Marshal(resp)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	if err := c.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	if _, err := c.Write(p); err != nil {
		return fmt.Errorf("send answer to %s of %s: %w", req.Verb, Attachment{req.ContainerID, req.Ifname}, err)
	}
	return nil
}

func handle(ctx context.Context, req *Request, netns *os.File, h Handler) (*Result, error) {
	switch req.Verb {
	case Add, Check:
		if netns == nil {
			return nil, Errorf(CodeEnvironment, "%s without a network namespace", req.Verb)
		}
		if req.Verb == Add {
			return h.Add(ctx, req, netns)
		}
		return nil, h.Check(ctx, req, netns)
	case Del:
		return nil, h.Del(ctx, req)
	case GC:
		return nil, h.GC(ctx, req)
	case Status:
		return nil, h.CNIStatus(ctx)
	}
	return nil, Errorf(CodeEnvironment, "unknown verb %q", req.Verb)
}

// receive reads a request and the file descriptor that came with it. It always returns a request, for the words of a later error.
func receive(c *net.UnixConn) (*Request, *os.File, error) {
	req := &Request{}
	buf := make([]byte, 8<<10)
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, nc, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return req, nil, Errorf(CodeIO, "read request: %v", err)
	}
	netns, err := descriptor(oob[:nc], flags)
	if err != nil {
		return req, netns, err
	}
	rest, err := io.ReadAll(io.LimitReader(c, maxMessage))
	if err != nil {
		return req, netns, Errorf(CodeIO, "read request: %v", err)
	}
	if err := json.Unmarshal(append(buf[:n], rest...), req); err != nil {
		return req, netns, Errorf(CodeDecode, "decode request: %v", err)
	}
	if err := checkAPI(req.API); err != nil {
		return req, netns, Errorf(CodeVersion, "request: %v", err)
	}
	return req, netns, nil
}

// descriptor returns the one file that came along, nil when none did.
func descriptor(oob []byte, flags int) (*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, Errorf(CodeDecode, "read file descriptor: %v", err)
	}
	var files []*os.File
	for _, m := range all {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // another sort of control message
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "netns"))
		}
	}
	if len(files) != 1 || flags&unix.MSG_CTRUNC != 0 {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
		return nil, errors.Join(Errorf(CodeDecode, "request came with %d file descriptors", len(files)), err)
	}
	return files[0], nil
}
