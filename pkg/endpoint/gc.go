// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"time"

	"github.com/fairlead/fairlead/pkg/cni"
)

// youth is the age under which an endpoint is never collected: its ADD may be newer than the runtime's list.
const youth = 2 * time.Minute

// GC removes endpoints that the runtime no longer knows and whose link is gone. A list that is absent says nothing; an empty one says that
// there are none. An endpoint whose namespace still holds our link stays: its container may be alive, whatever the list says.
func (t *Table) GC(ctx context.Context, req *cni.Request) error {
	began := t.enter(cni.GC, cni.Attachment{})
	err := t.gc(ctx, req)
	t.leave(cni.GC, cni.Attachment{}, began, err)
	return err
}

func (t *Table) gc(ctx context.Context, req *cni.Request) error {
	if req.Valid == nil {
		return nil
	}
	valid := map[string]bool{}
	for _, a := range *req.Valid {
		valid[a.LinkName()] = true
	}
	var errs []error
	for _, e := range t.List() {
		if !valid[e.Link] {
			_, err := t.collect(ctx, e.Link)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// collect removes an endpoint that is old enough and without its link.
func (t *Table) collect(ctx context.Context, name string) (bool, error) {
	release, err := t.lock(ctx, name)
	if err != nil {
		return false, err
	}
	defer release()
	e, ok := t.get(name)
	if !ok || !e.Complete || sinceBoot()-e.Created < youth || !t.linkGone(e) {
		return false, nil
	}
	return true, t.remove(e)
}

// sweep is the collection without a runtime, for those that never ask: an endpoint whose link was absent twice, one interval apart, is
// gone. missing carries what the last sweep saw.
func (t *Table) sweep(ctx context.Context, missing map[string]bool) (map[string]bool, error) {
	links, err := t.veths.List(cni.LinkPrefix)
	if err != nil {
		return missing, err
	}
	have := map[string]int{}
	for _, l := range links {
		have[l.Name] = l.Index
	}
	now := map[string]bool{}
	var errs []error
	for _, e := range t.List() {
		switch {
		case have[e.Link] == e.Ifindex:
		case !missing[e.Link]:
			now[e.Link] = true
		default:
			gone, err := t.collect(ctx, e.Link)
			errs = append(errs, err)
			if gone {
				t.log.Warn("endpoint collected: its link is gone and nobody asked for DEL", "link", e.Link, "container", e.ContainerID)
			} else {
				now[e.Link] = true
			}
		}
	}
	return now, errors.Join(errs...)
}
