// SPDX-License-Identifier: Apache-2.0

package traffic_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/fairlead/fairlead/pkg/testnet/traffic"
)

func freePort(t *testing.T) uint16 {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestLoadCleanAndNot(t *testing.T) {
	port := freePort(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- traffic.Serve(ctx, port, "here") }()
	addr := net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)}
	for {
		c, err := net.Dial("tcp", addr.String())
		if err == nil {
			c.Close()
			break
		}
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
	load := traffic.Load{URL: "http://" + addr.String(), KeepAlive: 5, New: 5 * time.Millisecond, UDP: addr.String(), Duration: 300 * time.Millisecond}
	r := load.Run(t.Context())
	if !r.Clean() || r.Requests == 0 || r.Connects == 0 || r.Datagrams == 0 || r.Backends["here"] != r.Requests+r.Connects {
		t.Errorf("with a server: %s", r)
	}
	// The server ends in the middle: kept connections break, new ones are refused, datagrams are lost.
	load.Duration = 600 * time.Millisecond
	time.AfterFunc(200*time.Millisecond, stop)
	r = load.Run(t.Context())
	if r.Clean() || r.Failed == 0 || r.Refused == 0 || r.Lost == 0 {
		t.Errorf("with a server that ended: %s", r)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
