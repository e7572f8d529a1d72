// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/link"
)

// Del takes a pod away. It answers when no program knows the endpoint and its addresses are free; the link goes behind it. It needs
// neither the namespace nor any earlier state: what is gone already is success.
func (t *Table) Del(ctx context.Context, req *cni.Request) error {
	a := attachment(req)
	began := t.enter(cni.Del, a)
	err := t.del(ctx, a, 0)
	t.leave(cni.Del, a, began, err)
	return err
}

// del removes an attachment, unless it was made after a time (since boot); 0: whenever it was made.
func (t *Table) del(ctx context.Context, a cni.Attachment, until time.Duration) error {
	name := a.LinkName()
	release, err := t.lock(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	e, ok := t.get(name)
	if !ok {
		// No record; a link of that name can only be what is left of it.
		if f, err := t.veths.Find(name); err == nil && f.Kind == "veth" {
			t.doomed.add(name, doom{due: time.Now().Add(linger)})
		}
		return nil
	}
	if until > 0 && e.Created > until {
		return nil
	}
	return t.remove(e)
}

// remove takes an endpoint out of the programs' tables, the pools and the journal. The caller has the endpoint's lock.
func (t *Table) remove(e *Endpoint) error {
	err := t.conceal(e)
	if err == nil {
		err = t.cfg.Dataplane.Delete(e.ID)
	}
	if err != nil {
		return cni.Errorf(cni.CodeIO, "%s", cni.Harmless(err.Error()))
	}
	t.doomed.add(e.Link, doom{due: time.Now().Add(linger), cookie: e.Cookie, ifname: e.Ifname})
	if !t.forget(e) {
		// A full disk does not stop a DEL: without the entry the next agent must find the endpoint without its link.
		if err := t.finish(e.Link); err != nil {
			t.report("remove link", err)
		}
	}
	t.notify()
	t.log.Info("endpoint removed", "endpoint", e)
	return nil
}

// forget frees an endpoint's addresses and writes that down. It says whether that could be written; if not, the next snapshot makes up for
// it.
func (t *Table) forget(e *Endpoint) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := sinceBoot()
	err := t.journal.append(entry{Op: opRemove, Link: e.Link, At: now})
	if err != nil {
		t.journal.dirty = true
		t.note("write journal", err)
	}
	t.free(e.Addrs, now)
	delete(t.endpoints, e.Link)
	return err == nil
}

// finish removes a doomed link now, and gives its id back. A name that is not doomed is no error. The caller has the endpoint's lock.
func (t *Table) finish(name string) error {
	if !t.doomed.take(name) {
		return nil
	}
	err := t.veths.Delete(name)
	if err == nil {
		err = t.cfg.IDs.Release(bpf.IDEndpoint, name)
	}
	if err != nil {
		t.doomed.add(name, doom{due: time.Now().Add(10 * linger)})
	}
	return err
}

// reap removes doomed links when they are due, one at a time, until the context ends.
func (t *Table) reap(ctx context.Context) {
	for ctx.Err() == nil {
		name, wait := t.doomed.next(time.Now())
		if name == "" {
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-t.doomed.wake:
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		release, err := t.lock(ctx, name)
		if err != nil {
			continue
		}
		if err := t.finish(name); err != nil {
			t.report("remove link", err)
		}
		release()
	}
}

// lock takes the endpoint's lock, for at most lockWait.
func (t *Table) lock(ctx context.Context, name string) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	release, err := t.locks.take(ctx, name)
	if err != nil {
		return nil, cni.Errorf(cni.CodeAgain, "another request works on %s: %v", name, err)
	}
	return release, nil
}

// get returns the complete or half made endpoint of a link name.
func (t *Table) get(name string) (*Endpoint, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.endpoints[name]
	return e, ok
}

// linkGone says whether an endpoint's link is certainly absent.
func (t *Table) linkGone(e *Endpoint) bool {
	f, err := t.veths.Find(e.Link)
	return errors.Is(err, link.ErrNoLink) || err == nil && f.Index != e.Ifindex
}
