// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// batch is a row of rtnetlink requests that go to the kernel in one system call. The kernel works them off in order and answers each;
// a request that fails does not stop those behind it, so what must not happen after a failure goes into the next batch.
type batch struct {
	buf   []byte
	start []int    // offset of each message
	what  []string // what each message does, for its error
}

// add begins a request of the type with its fixed header; attributes follow.
func (b *batch) add(what string, kind, flags uint16, header []byte) {
	b.finish()
	b.start = append(b.start, len(b.buf))
	b.what = append(b.what, what)
	var h [unix.SizeofNlMsghdr]byte
	binary.NativeEndian.PutUint16(h[4:], kind)
	binary.NativeEndian.PutUint16(h[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b.buf = append(b.buf, h[:]...)
	b.buf = append(b.buf, header...)
	b.pad()
}

// finish writes the length of the last message.
func (b *batch) finish() {
	if n := len(b.start); n > 0 {
		binary.NativeEndian.PutUint32(b.buf[b.start[n-1]:], uint32(len(b.buf)-b.start[n-1]))
	}
}

func (b *batch) pad() {
	for len(b.buf)%4 != 0 {
		b.buf = append(b.buf, 0)
	}
}

// attr appends an attribute to the last message.
func (b *batch) attr(kind uint16, data []byte) {
	b.buf = binary.NativeEndian.AppendUint16(b.buf, uint16(4+len(data)))
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = append(b.buf, data...)
	b.pad()
}

func (b *batch) attr32(kind uint16, v uint32) { b.attr(kind, binary.NativeEndian.AppendUint32(nil, v)) }

func (b *batch) attrName(kind uint16, s string) { b.attr(kind, append([]byte(s), 0)) }

func (b *batch) attrAddr(kind uint16, a netip.Addr) { b.attr(kind, a.AsSlice()) }

// open begins a nested attribute, done ends it.
func (b *batch) open(kind uint16) int {
	at := len(b.buf)
	b.attr(kind|unix.NLA_F_NESTED, nil)
	return at
}

func (b *batch) done(at int) { binary.NativeEndian.PutUint16(b.buf[at:], uint16(len(b.buf)-at)) }

// answer is what the kernel says to one request.
type answer struct {
	data []byte // the last message that is no acknowledgement, without its netlink header
	err  error
}

// wire is one rtnetlink socket. One goroutine at a time.
type wire struct {
	fd  int
	seq uint32
	buf []byte
}

// openWire opens a socket in the namespace of the calling thread; it stays in that namespace.
func openWire() (*wire, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	for _, o := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, o, 1); err != nil {
			return nil, errors.Join(fmt.Errorf("set netlink option %d: %w", o, err), unix.Close(fd))
		}
	}
	return &wire{fd: fd, buf: make([]byte, 32<<10)}, nil
}

func (w *wire) close() error { return unix.Close(w.fd) }

// cookie returns the cookie of the socket's network namespace: unique while the kernel runs.
func (w *wire) cookie() (uint64, error) {
	c, err := unix.GetsockoptUint64(w.fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("get namespace cookie: %w", err)
	}
	return c, nil
}

// run sends the batch and returns one answer for each request. The error is one of the socket itself.
func (w *wire) run(b *batch) ([]answer, error) {
	b.finish()
	first := w.seq + 1
	for _, at := range b.start {
		w.seq++
		binary.NativeEndian.PutUint32(b.buf[at+8:], w.seq)
	}
	if err := w.send(b.buf); err != nil {
		return nil, err
	}
	all := make([]answer, len(b.start))
	for open := len(all); open > 0; {
		err := w.receive(func(kind uint16, flags uint16, seq uint32, data []byte) {
			i := int(seq - first)
			if i < 0 || i >= len(all) {
				return // left from a batch that failed half way
			}
			if kind == unix.NLMSG_ERROR {
				all[i].err = ackError(flags, data)
				open--
				return
			}
			all[i].data = append([]byte(nil), data...)
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// do sends the batch and returns the error of the first request that failed.
func (w *wire) do(b *batch) error {
	all, err := w.run(b)
	if err != nil {
		return fmt.Errorf("%s: %w", b.what[0], err)
	}
	for i, a := range all {
		if a.err != nil {
			return fmt.Errorf("%s: %w", b.what[i], a.err)
		}
	}
	return nil
}

// dump sends one dump request and calls each for every message, again from the start while the kernel says that the table changed
// under the dump.
func (w *wire) dump(b *batch, reset func(), each func(data []byte)) error {
	for try := 0; ; try++ {
		reset()
		b.finish()
		w.seq++
		binary.NativeEndian.PutUint32(b.buf[8:], w.seq)
		if err := w.send(b.buf); err != nil {
			return err
		}
		var failed error
		var torn bool
		for open := true; open; {
			err := w.receive(func(kind uint16, flags uint16, seq uint32, data []byte) {
				if seq != w.seq {
					return
				}
				torn = torn || flags&unix.NLM_F_DUMP_INTR != 0
				switch kind {
				case unix.NLMSG_DONE:
					open = false
					if len(data) >= 4 {
						failed = errors.Join(failed, ackError(flags, data))
					}
				case unix.NLMSG_ERROR:
					open = false
					failed = errors.Join(failed, ackError(flags, data))
				default:
					each(data)
				}
			})
			if err != nil {
				return err
			}
		}
		if failed != nil || !torn {
			return failed
		}
		if try == 20 {
			return errors.New("table changed during 20 dumps")
		}
	}
}

func (w *wire) send(p []byte) error {
	for {
		err := unix.Sendto(w.fd, p, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receive reads one datagram, which may hold several messages. rtnetlink has put all answers to a batch into the queue when the send
// returns, so this does not wait.
func (w *wire) receive(each func(kind, flags uint16, seq uint32, data []byte)) error {
	n, _, err := unix.Recvfrom(w.fd, w.buf, unix.MSG_TRUNC)
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read netlink: %w", err)
	}
	if n > len(w.buf) {
		return fmt.Errorf("read netlink: message of %d bytes", n)
	}
	for p := w.buf[:n]; len(p) >= unix.SizeofNlMsghdr; {
		size := int(binary.NativeEndian.Uint32(p))
		if size < unix.SizeofNlMsghdr || size > len(p) {
			return fmt.Errorf("read netlink: message length %d of %d", size, len(p))
		}
		each(binary.NativeEndian.Uint16(p[4:]), binary.NativeEndian.Uint16(p[6:]), binary.NativeEndian.Uint32(p[8:]),
			p[unix.SizeofNlMsghdr:size])
		p = p[min(len(p), (size+3)&^3):]
	}
	return nil
}

// ackError reads an acknowledgement: nil for errno 0, else the errno with the kernel's own words when it sent some.
func ackError(flags uint16, data []byte) error {
	if len(data) < 4 {
		return errors.New("short netlink acknowledgement")
	}
	no := -int32(binary.NativeEndian.Uint32(data))
	if no == 0 {
		return nil
	}
	const capped, tlvs, message = 0x100, 0x200, 1 // NLM_F_CAPPED, NLM_F_ACK_TLVS, NLMSGERR_ATTR_MSG
	if flags&tlvs != 0 {
		skip := 4 + unix.SizeofNlMsghdr
		if flags&capped == 0 && len(data) >= 8 {
			skip = 4 + (int(binary.NativeEndian.Uint32(data[4:]))+3)&^3
		}
		if skip <= len(data) {
			if m := attrs(data[skip:])[message]; len(m) > 1 {
				return fmt.Errorf("%w (%s)", unix.Errno(no), m[:len(m)-1])
			}
		}
	}
	return unix.Errno(no)
}

// attrs splits a row of attributes. What is malformed ends it.
func attrs(p []byte) map[uint16][]byte {
	all := map[uint16][]byte{}
	for len(p) >= 4 {
		size := int(binary.NativeEndian.Uint16(p))
		if size < 4 || size > len(p) {
			break
		}
		all[binary.NativeEndian.Uint16(p[2:])&0x3fff] = p[4:size]
		p = p[min(len(p), (size+3)&^3):]
	}
	return all
}
