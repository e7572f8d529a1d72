// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"
)

// Load says what to send where.
type Load struct {
	URL       string        // HTTP server; empty: no HTTP
	KeepAlive int           // connections that stay open; each sends a request every Pace
	Pace      time.Duration // 0: 20 ms
	New       time.Duration // time between requests on a connection of their own; 0: none
	UDP       string        // echo server, host:port; empty: none
	UDPPace   time.Duration // time between datagrams; 0: 1 ms
	Duration  time.Duration
	Timeout   time.Duration // of one request or one answer; 0: 5 s
}

// Report is what came of it.
type Report struct {
	Requests  int            // on kept connections
	Failed    int            // of them, a reset or closed connection included
	Connects  int            // requests on new connections
	Refused   int            // of them failed
	Datagrams int            // sent
	Lost      int            // of them without an answer
	Duplicate int            // answered twice
	Backends  map[string]int // who answered
	Errors    []string       // the first few
	Longest   time.Duration  // slowest request
}

// Clean says whether nothing was lost, reset, refused or answered twice, and something was sent.
func (r Report) Clean() bool {
	return r.Requests+r.Connects+r.Datagrams > 0 && r.Failed == 0 && r.Refused == 0 && r.Lost == 0 && r.Duplicate == 0
}

func (r Report) String() string {
	s := fmt.Sprintf("%d requests on kept connections, %d failed; %d on new ones, %d failed; %d datagrams, %d lost, %d twice; slowest request %v; backends %v",
		r.Requests, r.Failed, r.Connects, r.Refused, r.Datagrams, r.Lost, r.Duplicate, r.Longest.Round(time.Millisecond), r.Backends)
	for _, e := range r.Errors {
		s += "\n  " + e
	}
	return s
}

// Run puts the load on the network until its duration is over or the context ends.
func (l Load) Run(ctx context.Context) Report {
	if l.Pace == 0 {
		l.Pace = 20 * time.Millisecond
	}
	if l.UDPPace == 0 {
		l.UDPPace = time.Millisecond
	}
	if l.Timeout == 0 {
		l.Timeout = 5 * time.Second
	}
	r := &recorder{Report: Report{Backends: map[string]int{}}}
	ctx, cancel := context.WithTimeout(ctx, l.Duration)
	defer cancel()
	var all sync.WaitGroup
	if l.URL != "" {
		for i := range l.KeepAlive {
			all.Go(func() {
				wait(ctx, l.Pace*time.Duration(i)/time.Duration(l.KeepAlive)) // not all at once
				l.keepAlive(ctx, r)
			})
		}
		if l.New > 0 {
			all.Go(func() { l.connect(ctx, r) })
		}
	}
	if l.UDP != "" {
		all.Go(func() { l.stream(ctx, r) })
	}
	all.Wait()
	return r.Report
}

type recorder struct {
	mu sync.Mutex
	Report
}

func (r *recorder) note(f func(*Report)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.Report)
}

func (r *Report) fail(n *int, err error) {
	*n++
	if len(r.Errors) < 8 {
		r.Errors = append(r.Errors, time.Now().Format("15:04:05.000 ")+err.Error())
	}
}

// wait sleeps, or says false when the context ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// keepAlive holds one connection and speaks HTTP on it itself: a client would hide a reset behind a new connection. After a failure it dials
// anew, so that one broken connection counts once.
func (l Load) keepAlive(ctx context.Context, r *recorder) {
	url, err := url.Parse(l.URL)
	if err != nil {
		r.note(func(rep *Report) { rep.fail(&rep.Failed, err) })
		return
	}
	request := &http.Request{Method: http.MethodGet, URL: url, Host: url.Host, Header: http.Header{}}
	for ctx.Err() == nil {
		conn, err := net.DialTimeout("tcp", url.Host, l.Timeout)
		if err != nil {
			r.note(func(rep *Report) {
				rep.Requests++
				rep.fail(&rep.Failed, err)
			})
			wait(ctx, l.Pace)
			continue
		}
		from := bufio.NewReader(conn)
		for l.ask(func() (string, error) { return exchange(conn, from, request, l.Timeout) }, r, func(rep *Report, err error) {
			rep.Requests++
			if err != nil {
				rep.fail(&rep.Failed, fmt.Errorf("kept connection %s: %w", conn.LocalAddr(), err))
			}
		}) && wait(ctx, l.Pace) {
		}
		conn.Close()
	}
}

// exchange sends a request on an open connection and reads its answer.
func exchange(conn net.Conn, from *bufio.Reader, request *http.Request, timeout time.Duration) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if err := request.Write(conn); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(from, request)
	if err != nil {
		return "", err
	}
	return answer(resp)
}

func (l Load) connect(ctx context.Context, r *recorder) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: l.Timeout}
	for ctx.Err() == nil {
		l.ask(func() (string, error) { return get(client, l.URL) }, r, func(rep *Report, err error) {
			rep.Connects++
			if err != nil {
				rep.fail(&rep.Refused, err)
			}
		})
		wait(ctx, l.New)
	}
}

// ask makes one request, whole, even when the time is up meanwhile.
func (l Load) ask(get func() (string, error), r *recorder, done func(*Report, error)) bool {
	start := time.Now()
	name, err := get()
	took := time.Since(start)
	r.note(func(rep *Report) {
		done(rep, err)
		rep.Longest = max(rep.Longest, took)
		if err == nil {
			rep.Backends[name]++
		}
	})
	return err == nil
}

func get(client *http.Client, url string) (name string, err error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	return answer(resp)
}

// answer reads a response to its end and returns who gave it.
func answer(resp *http.Response) (name string, err error) {
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(resp.Status)
	}
	if _, err := fmt.Sscan(string(body), &name); err != nil {
		return "", fmt.Errorf("answer %q: %w", body, err)
	}
	return name, nil
}

// stream sends numbered datagrams at an even pace on one connected socket, and waits for the last answers.
func (l Load) stream(ctx context.Context, r *recorder) {
	conn, err := net.Dial("udp", l.UDP)
	if err != nil {
		r.note(func(rep *Report) { rep.fail(&rep.Lost, err) })
		return
	}
	defer conn.Close()
	answered := make(chan map[uint64]int)
	go func() {
		seen := map[uint64]int{}
		b := make([]byte, 64)
		for {
			n, err := conn.Read(b)
			switch {
			case err == nil && n == 8:
				seen[binary.BigEndian.Uint64(b)]++
			case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed):
				answered <- seen
				return
			case err != nil:
				r.note(func(rep *Report) { rep.Errors = append(rep.Errors, err.Error()) })
				time.Sleep(l.UDPPace) // ECONNREFUSED of one datagram: the next may fare better
			}
		}
	}()
	var sent uint64
	tick := time.NewTicker(l.UDPPace)
	defer tick.Stop()
	for ctx.Err() == nil {
		if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, sent)); err != nil {
			r.note(func(rep *Report) { rep.Errors = append(rep.Errors, err.Error()) })
		}
		sent++
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		r.note(func(rep *Report) { rep.Errors = append(rep.Errors, err.Error()) })
		conn.Close()
	}
	seen := <-answered
	r.note(func(rep *Report) {
		rep.Datagrams = int(sent)
		for i := range sent {
			switch seen[i] {
			case 0:
				rep.Lost++
			case 1:
			default:
				rep.Duplicate++
			}
		}
	})
}
