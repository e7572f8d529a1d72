// SPDX-License-Identifier: Apache-2.0

// Package traffic is the load that tests, the demo and benchmarks put on a network, and its judge: keep-alive HTTP connections, new
// connections, and a paced UDP stream whose sequence numbers show every loss. It runs inside pods, as a process of its own.
package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Serve answers HTTP requests with the name, and UDP datagrams with themselves, on the port in both families until the context ends.
func Serve(ctx context.Context, port uint16, name string) error {
	addr := fmt.Sprintf("[::]:%d", port)
	tcp, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	udp, err := net.ListenPacket("udp", addr)
	if err != nil {
		return errors.Join(fmt.Errorf("serve UDP: %w", err), tcp.Close())
	}
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s\n", name, r.RemoteAddr)
		}),
	}
	failed := make(chan error, 2)
	go func() { failed <- server.Serve(tcp) }()
	go func() { failed <- echo(udp) }()
	select {
	case <-ctx.Done():
		err = nil
	case err = <-failed:
	}
	return errors.Join(err, server.Close(), udp.Close())
}

func echo(conn net.PacketConn) error {
	b := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return err
		}
		if _, err := conn.WriteTo(b[:n], from); err != nil && errors.Is(err, net.ErrClosed) {
			return err
		}
	}
}
