// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Event says what sort of thing changed in the namespace. It carries no value: between the message and its reader the thing may have
// changed again, so the reader looks.
type Event uint8

// The sorts of Event.
const (
	LinkEvent    Event = 1 << iota // a link came, went, or has another state, MTU or MAC
	AddressEvent                   // an address came or went
	RouteEvent                     // a route of Fairlead to more than one address (so not a pod's) went, by whatever hand
)

// resubscribe is the pause before messages are asked for again after the kernel broke off.
const resubscribe = 200 * time.Millisecond

// Watch calls changed for events, with the index of the link that each is about, until the context ends, from one goroutine at a time.
// It begins with an event about links and one about addresses, both about link 0: from then on no change is missed. Messages that the
// kernel could not deliver (a full socket buffer) show as one event of every sort, about link 0.
func (h *Handle) Watch(ctx context.Context, changed func(e Event, index int)) {
	var wait sync.WaitGroup
	var turn sync.Mutex
	notify := func(e Event, index int) {
		turn.Lock()
		defer turn.Unlock()
		changed(e, index)
	}
	for _, run := range []func(ctx context.Context, notify func(Event, int)) error{h.watchLinks, h.watchAddresses, h.watchRoutes} {
		wait.Go(func() {
			for ctx.Err() == nil {
				one, done := context.WithCancel(ctx)
				_ = run(one, notify) // broken off: what was missed is unknown, for whatever reason
				done()
				select {
				case <-ctx.Done():
				case <-time.After(resubscribe):
					notify(LinkEvent|AddressEvent|RouteEvent, 0)
				}
			}
		})
	}
	wait.Wait()
}

func (h *Handle) watchLinks(ctx context.Context, notify func(Event, int)) error {
	updates := make(chan netlink.LinkUpdate, 64)
	err := netlink.LinkSubscribeWithOptions(updates, ctx.Done(), netlink.LinkSubscribeOptions{
		Namespace: &h.ns, ErrorCallback: func(error) {},
	})
	if err != nil {
		return err
	}
	notify(LinkEvent, 0) // what happened before the kernel was asked for messages
	for u := range updates {
		notify(LinkEvent, int(u.Index))
	}
	return nil
}

func (h *Handle) watchAddresses(ctx context.Context, notify func(Event, int)) error {
	updates := make(chan netlink.AddrUpdate, 64)
	err := netlink.AddrSubscribeWithOptions(updates, ctx.Done(), netlink.AddrSubscribeOptions{
		Namespace: &h.ns, ErrorCallback: func(error) {},
	})
	if err != nil {
		return err
	}
	notify(AddressEvent, 0)
	for u := range updates {
		notify(AddressEvent, u.LinkIndex)
	}
	return nil
}

func (h *Handle) watchRoutes(ctx context.Context, notify func(Event, int)) error {
	updates := make(chan netlink.RouteUpdate, 64)
	err := netlink.RouteSubscribeWithOptions(updates, ctx.Done(), netlink.RouteSubscribeOptions{
		Namespace: &h.ns, ErrorCallback: func(error) {},
	})
	if err != nil {
		return err
	}
	for u := range updates {
		if dst, ok := prefixOf(u.Dst); ok && u.Type == unix.RTM_DELROUTE && u.Protocol == Protocol && !dst.IsSingleIP() {
			notify(RouteEvent, u.LinkIndex)
		}
	}
	return nil
}
