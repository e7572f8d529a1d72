// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/reconcile"
)

// backend is an element of the backend map.
type backend struct {
	addr  netip.AddrPort
	id    bpf.ID
	flags bpf.BackendFlag // as written, when live
	force bpf.BackendFlag // as the last flip wants them; those of the sets say what the slots in force hold
	live  bool            // the element is written
	kept  bool            // the element is to be there
	gone  uint32          // != 0: number of the change that let it go
}

// departed are the flags that a backend loses when it leaves: it gets no new flow, and UDP flows choose again. It stays live, so that
// who has chosen it a moment ago, and TCP that drains, still find it.
const departed = bpf.BackendServing | bpf.BackendCluster | bpf.BackendInLocal

// find returns the backend with an address, nil when there is none.
func (p *port) find(a netip.AddrPort) *backend {
	i, ok := slices.BinarySearchFunc(p.backends, a, func(b *backend, a netip.AddrPort) int { return b.addr.Compare(a) })
	if !ok {
		return nil
	}
	return p.backends[i]
}

// backendIDs reserves ids for backends that have no element. One that an agent before this one wrote already is taken as it is.
func (s *Proxy) backendIDs(p *port, fresh []*backend) reconcile.Step {
	var got []*backend
	return reconcile.Step{
		Do: func() error {
			for _, b := range fresh {
				id, err := s.cfg.IDs.Acquire(bpf.IDBackend, backendDescription(p.sig, b.addr))
				if err != nil {
					return err
				}
				b.id = id
				got = append(got, b)
				switch l := s.leftover[id.ID]; {
				case l == nil:
				case l.el.Incarnation == id.Incarnation:
					b.live, b.flags = l.live, l.flags
				default:
					// An element without id is in the place of the new one.
					if err := s.cfg.Tables.DeleteBackend(id.ID); err != nil {
						return err
					}
					delete(s.leftover, id.ID)
				}
			}
			return nil
		},
		Undo: func() error {
			for ; len(got) > 0; got = got[1:] {
				b := got[0]
				if s.leftover[b.id.ID] != nil || s.taken(p.sig, b) {
					continue
				}
				id, ok, err := s.cfg.IDs.Find(bpf.IDBackend, backendDescription(p.sig, b.addr))
				if err != nil {
					return err
				}
				if !ok || id != b.id {
					continue // given back already, and perhaps given out again
				}
				// Written by this change, or by one before it that is not given back yet.
				if is, ok := s.cfg.Tables.Backend(b.id.ID); ok && is.Incarnation == b.id.Incarnation {
					if err := s.cfg.Tables.DeleteBackend(b.id.ID); err != nil {
						return err
					}
				}
				if err := s.release(p.sig, b); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// taken says whether a change after a failed one made a backend of the same address.
func (s *Proxy) taken(service bpf.Signature, b *backend) bool {
	p := s.ports[service]
	return p != nil && p.find(b.addr) != nil
}

func (s *Proxy) release(service bpf.Signature, b *backend) error {
	return s.cfg.IDs.ReleaseSignature(bpf.IDBackend, bpf.Sign(backendDescription(service, b.addr)))
}

// put writes a backend with these flags.
func (s *Proxy) put(p *port, b *backend, flags bpf.BackendFlag) error {
	err := s.cfg.Tables.PutBackend(bpf.Backend{
		ID:          b.id.ID,
		Incarnation: b.id.Incarnation,
		Flags:       flags,
		Addr:        b.addr.Addr(),
		Port:        b.addr.Port(),
		Protocol:    p.protocol,
	})
	if err != nil {
		return err
	}
	if b.live && b.flags&^flags&bpf.BackendServing != 0 && p.protocol == uint8(cluster.UDP) {
		s.silenced = true
	}
	b.flags, b.live = flags, true
	return nil
}

// right brings an element to what is in force.
func (s *Proxy) right(p *port, b *backend) error {
	switch {
	case b.kept && (!b.live || b.flags != b.force):
		return s.put(p, b, b.force)
	case !b.kept && b.live:
		if err := s.cfg.Tables.DeleteBackend(b.id.ID); err != nil {
			return err
		}
		b.live, b.flags = false, 0
	}
	return nil
}

func (s *Proxy) rightAll(p *port, all []*backend) error {
	for _, b := range all {
		if err := s.right(p, b); err != nil {
			return err
		}
	}
	return nil
}

// addBackends writes elements that are new, and flags that are gained: before the flip nothing gets less.
func (s *Proxy) addBackends(p *port, pl plan) reconcile.Step {
	return reconcile.Step{
		Do: func() error {
			for _, i := range pl.other {
				b := pl.next[i]
				flags := b.flags | pl.force[i]
				if b.live && b.flags == flags {
					continue
				}
				if err := s.put(p, b, flags); err != nil {
					return err
				}
			}
			return nil
		},
		Undo: func() error {
			for _, i := range pl.other {
				b := pl.next[i]
				if p.find(b.addr) == b {
					if err := s.right(p, b); err != nil {
						return err
					}
				} else if err := s.rightLeftover(p, b); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// rightLeftover gives an element of an agent before this one its flags back. New elements go with their ids.
func (s *Proxy) rightLeftover(p *port, b *backend) error {
	l := s.leftover[b.id.ID]
	if l == nil || !b.live || b.flags == l.flags && l.live {
		return nil
	}
	if l.live {
		return s.put(p, b, l.flags)
	}
	if err := s.cfg.Tables.DeleteBackend(b.id.ID); err != nil {
		return err
	}
	b.live, b.flags = false, 0
	return nil
}

// clearBackends ends the life of backends that did not come back: their words say so to every flow that has them.
func (s *Proxy) clearBackends(left []*backend, seq uint32) error {
	for _, b := range left {
		if b.gone != seq {
			continue
		}
		if b.live {
			if err := s.cfg.Tables.DeleteBackend(b.id.ID); err != nil {
				return err
			}
		}
		b.live, b.kept, b.flags, b.force = false, false, 0, 0
	}
	return nil
}

// freeBackends gives back the ids of backends that did not come back.
func (s *Proxy) freeBackends(service bpf.Signature, left []*backend, seq uint32) error {
	freed := map[*backend]bool{}
	var err error
	for _, b := range left {
		if b.gone != seq || err != nil {
			continue
		}
		// A change that wanted it back, and failed, may have written it again.
		if p := s.ports[service]; p != nil {
			err = s.right(p, b)
		}
		if err == nil {
			err = s.release(service, b)
		}
		if err == nil {
			freed[b] = true
			b.gone = 0
		}
	}
	if p := s.ports[service]; p != nil && len(freed) > 0 {
		// A copy: plans of other changes hold the old list.
		p.backends = slices.DeleteFunc(slices.Clone(p.backends), func(b *backend) bool { return freed[b] })
		s.forget(p)
	}
	return err
}
