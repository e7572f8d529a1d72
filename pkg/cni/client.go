// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// SocketName is the agent's socket in the run directory.
const SocketName = "agent.sock"

// ErrAway says that no agent answered: nobody listens, or the agent went away before its answer.
var ErrAway = errors.New("agent is away")

// ErrSlow says that the agent took the request, or let it wait, and did not answer in time.
var ErrSlow = errors.New("agent does not answer")

const maxMessage = 8 << 20 // bytes; a GC request names every attachment of a node

// Call sends a request to the agent at the socket and returns its answer. netns goes along when it is not negative. The whole call takes at
// most the timeout; ErrAway and ErrSlow say that the agent could not be asked, every other error is the answer.
//
// Plain system calls: the binary that calls this lives for a millisecond.
func Call(socket string, req Request, netns int, timeout time.Duration) (*Result, error) {
	deadline := time.Now().Add(timeout)
	req.API = API()
	body, err := json.Marshal(req)
	if err != nil {
		return nil, Errorf(CodeInternal, "encode request: %v", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, Errorf(CodeIO, "open socket: %v", err)
	}
	defer unix.Close(fd)
	if err := limit(fd, deadline); err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", socket, reason(err))
	}
	var rights []byte
	if netns >= 0 {
		rights = unix.UnixRights(netns)
	}
	for first := true; first || len(body) > 0; first = false {
		n, err := unix.SendmsgN(fd, body, rights, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("send to %s: %w", socket, reason(err))
		}
		body, rights = body[n:], nil
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return nil, fmt.Errorf("send to %s: %w", socket, reason(err))
	}
	var answer []byte
	for buf := make([]byte, 8<<10); ; {
		if err := limit(fd, deadline); err != nil {
			return nil, fmt.Errorf("read from %s: %w", socket, err)
		}
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read from %s: %w", socket, reason(err))
		}
		if n == 0 {
			break
		}
		if answer = append(answer, buf[:n]...); len(answer) > maxMessage {
			return nil, Errorf(CodeDecode, "answer of the agent is longer than %d bytes", maxMessage)
		}
	}
	if len(answer) == 0 {
		return nil, fmt.Errorf("read from %s: %w before its answer", socket, ErrAway)
	}
	var resp Response
	if err := json.Unmarshal(answer, &resp); err != nil {
		return nil, Errorf(CodeDecode, "decode answer of the agent: %v", err)
	}
	if resp.Error != nil {
		return nil, resp.Error
	}
	if err := checkAPI(resp.API); err != nil {
		return nil, Errorf(CodeVersion, "answer of the agent: %v", err)
	}
	return resp.Result, nil
}

// limit lets reads and writes wait until the deadline.
func limit(fd int, deadline time.Time) error {
	left := time.Until(deadline)
	if left <= 0 {
		return ErrSlow
	}
	tv := unix.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
	for _, o := range []int{unix.SO_SNDTIMEO, unix.SO_RCVTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, o, &tv); err != nil {
			return fmt.Errorf("set socket timeout: %w", err)
		}
	}
	return nil
}

// reason turns what the kernel says into ErrAway or ErrSlow.
func reason(err error) error {
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINPROGRESS), errors.Is(err, unix.ETIMEDOUT):
		return ErrSlow
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: its socket is absent", ErrAway)
	}
	return fmt.Errorf("%w: %w", ErrAway, err)
}
