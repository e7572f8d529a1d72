// SPDX-License-Identifier: Apache-2.0

// Command helper is what runs in the pods of a testnet: servers that answer, and clients that count what was lost.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/pkg/testnet/traffic"
)

const usage = `helper serve PORT NAME   answer HTTP with NAME and the client's address, UDP with itself, at PORT of every address
helper get URL           one HTTP request on a connection of its own; prints the answer
helper ask HOST:PORT     one UDP datagram; prints the answer's sender
helper load JSON         traffic.Load from JSON; prints traffic.Report as JSON`

// patience is how long get and ask wait for an answer.
const patience = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "helper:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	switch {
	case len(args) == 3 && args[0] == "serve":
		port, err := strconv.ParseUint(args[1], 10, 16)
		if err != nil {
			return fmt.Errorf("read PORT: %w", err)
		}
		return traffic.Serve(ctx, uint16(port), args[2])
	case len(args) == 2 && args[0] == "get":
		return get(ctx, args[1], out)
	case len(args) == 2 && args[0] == "ask":
		return ask(args[1], out)
	case len(args) == 2 && args[0] == "load":
		var load traffic.Load
		if err := json.Unmarshal([]byte(args[1]), &load); err != nil {
			return fmt.Errorf("read JSON: %w", err)
		}
		return json.NewEncoder(out).Encode(load.Run(ctx))
	}
	return errors.New("usage:\n" + usage)
}

func get(ctx context.Context, url string, out io.Writer) error {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(out, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	return nil
}

func ask(addr string, out io.Writer) error {
	conn, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	b := make([]byte, 64)
	n, err := conn.Read(b)
	if err != nil {
		return err
	}
	if string(b[:n]) != "hello" {
		return fmt.Errorf("answer is %q", b[:n])
	}
	_, err = fmt.Fprintln(out, conn.RemoteAddr())
	return err
}
