// SPDX-License-Identifier: Apache-2.0

package query

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
)

// Client asks the agent that listens at a socket.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client of the agent at the unix socket path. Nothing is opened before the first question.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Status asks for the agent's state.
func (c *Client) Status(ctx context.Context) (Status, error) { return ask[Status](ctx, c, "status") }

// Drops asks for the counters of refused packets.
func (c *Client) Drops(ctx context.Context) (Drops, error) { return ask[Drops](ctx, c, "drops") }

// Services asks for the services as they are compiled.
func (c *Client) Services(ctx context.Context) (Services, error) {
	return ask[Services](ctx, c, "services")
}

// Endpoints asks for the pods of the node.
func (c *Client) Endpoints(ctx context.Context) (Endpoints, error) {
	return ask[Endpoints](ctx, c, "endpoints")
}

// Peers asks for the other nodes.
func (c *Client) Peers(ctx context.Context) (Peers, error) { return ask[Peers](ctx, c, "peers") }

func ask[T any](ctx context.Context, c *Client, what string) (T, error) {
	var v T
	url := fmt.Sprintf("http://fairlead/v%d/%s", Version, what)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return v, fmt.Errorf("ask agent for %s: %w", what, err)
	}
	response, err := c.http.Do(request)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return v, fmt.Errorf("ask agent for %s: no agent listens at %s (is fairleadd running with this --run-dir?)", what, c.path)
	case errors.Is(err, fs.ErrPermission):
		return v, fmt.Errorf("ask agent for %s: socket %s is for root only", what, c.path)
	case err != nil:
		return v, fmt.Errorf("ask agent for %s: %w", what, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return v, fmt.Errorf("read agent's answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		var f Failure
		if json.Unmarshal(body, &f) != nil || f.Message == "" {
			f.Message = response.Status
		}
		return v, fmt.Errorf("ask agent for %s: %s", what, f.Message)
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return v, fmt.Errorf("read agent's answer: %w", err)
	}
	return v, nil
}
