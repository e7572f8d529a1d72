// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Conn changes nftables in one network namespace. It may be used by several goroutines; each call is one transaction.
type Conn struct {
	mu sync.Mutex
	fd int
}

// New returns a connection to the namespace of the open file descriptor, which stays the caller's and must live as long; 0 is the
// process's own namespace.
func New(fd int) *Conn { return &Conn{fd: fd} }

// Sizes of one transaction.
const (
	chunk      = 500     // prefixes in one message: an attribute has at most 64 KiB, an element up to 56 bytes and a prefix two of them
	sendBuffer = 8 << 20 // bytes: a transaction is sent as a whole
)

// Ensure makes a table exactly this. When chains, rules and set types are already so, only the differing elements of sets are written; else the
// table is replaced in one transaction, so that no packet sees it half made, and sets that are kept get their old elements back. changed
// says that anything was written.
func (c *Conn) Ensure(t Table) (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed, err = c.ensure(t)
	if err != nil {
		return false, fmt.Errorf("set up nftables table inet %s: %w", t.Name, err)
	}
	return changed, nil
}

func (c *Conn) ensure(t Table) (bool, error) {
	nl, err := c.open()
	if err != nil {
		return false, err
	}
	table := &nftables.Table{Name: t.Name, Family: nftables.TableFamilyINet}
	same, err := sameRules(nl, table, t)
	if err != nil {
		return false, err
	}
	have := map[string][]netip.Prefix{}
	for i, s := range t.Sets {
		elements, ok, err := readSet(nl, table, s)
		if err != nil {
			return false, err
		}
		same = same && ok
		have[s.Name] = elements
		if s.Keep {
			t.Sets[i].Prefixes = elements
		}
	}
	if !same {
		return true, replace(nl, table, t)
	}
	changed := false
	for _, s := range t.Sets {
		add, remove := difference(s.Prefixes, have[s.Name]), difference(have[s.Name], s.Prefixes)
		if len(add)+len(remove) > 0 {
			changed = true
			if err := change(nl, s.nft(table, 0), add, remove); err != nil {
				return false, err
			}
		}
	}
	if !changed {
		return false, nil
	}
	return true, nl.Flush()
}

// Elements returns the prefixes of a set in the order of addresses; ok is false when there is no such set.
func (c *Conn) Elements(table string, s Set) (prefixes []netip.Prefix, ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	nl, err := c.open()
	if err == nil {
		prefixes, ok, err = readSet(nl, &nftables.Table{Name: table, Family: nftables.TableFamilyINet}, s)
	}
	if err != nil {
		return nil, false, fmt.Errorf("read nftables set %s of table inet %s: %w", s.Name, table, err)
	}
	return prefixes, ok, nil
}

// Update removes prefixes from a set and adds others, in one transaction. Those to remove must be there, those to add must not
// overlap with what stays; else nothing changes.
func (c *Conn) Update(table string, s Set, add, remove []netip.Prefix) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	nl, err := c.open()
	if err == nil {
		err = change(nl, s.nft(&nftables.Table{Name: table, Family: nftables.TableFamilyINet}, 0), add, remove)
	}
	if err == nil {
		err = nl.Flush()
	}
	if err != nil {
		return fmt.Errorf("change nftables set %s of table inet %s: %w", s.Name, table, err)
	}
	return nil
}

// Delete removes a table; one that is not there is no error.
func (c *Conn) Delete(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	nl, err := c.open()
	if err == nil {
		table := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
		nl.AddTable(table) // does nothing when it is there; deleting a missing one is an error
		nl.DelTable(table)
		err = nl.Flush()
	}
	if err != nil {
		return fmt.Errorf("delete nftables table inet %s: %w", name, err)
	}
	return nil
}

func (c *Conn) open() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(c.fd), nftables.WithSockOptions(func(nl *netlink.Conn) error {
		return nl.SetWriteBuffer(sendBuffer)
	}))
}

// sameRules says whether the table is there with exactly these chains and rules.
func sameRules(nl *nftables.Conn, table *nftables.Table, t Table) (bool, error) {
	all, err := nl.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return false, fmt.Errorf("list chains: %w", err)
	}
	all = slices.DeleteFunc(all, func(c *nftables.Chain) bool { return c.Table.Name != t.Name })
	if len(all) != len(t.Chains) {
		return false, nil
	}
	for _, want := range t.Chains {
		i := slices.IndexFunc(all, func(c *nftables.Chain) bool { return c.Name == want.Name })
		if i < 0 || !sameHook(all[i], want.Hook.chain(table, want.Name)) {
			return false, nil
		}
		rules, err := nl.GetRules(table, all[i])
		if err != nil {
			return false, fmt.Errorf("list rules of chain %s: %w", want.Name, err)
		}
		if len(rules) != len(want.Rules) {
			return false, nil
		}
		for j, r := range want.Rules {
			comment, err := r.comment()
			if err != nil {
				return false, err
			}
			if commentOf(rules[j]) != comment {
				return false, nil
			}
		}
	}
	return true, nil
}

func sameHook(a, b *nftables.Chain) bool {
	return a.Type == b.Type && a.Hooknum != nil && *a.Hooknum == *b.Hooknum && a.Priority != nil && *a.Priority == *b.Priority &&
		a.Policy != nil && *a.Policy == *b.Policy
}

// readSet returns the elements of a set; ok is false when there is none of that name and type.
func readSet(nl *nftables.Conn, table *nftables.Table, s Set) ([]netip.Prefix, bool, error) {
	there, err := nl.GetSetByName(table, s.Name)
	if errors.Is(err, unix.ENOENT) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("find set %s: %w", s.Name, err)
	}
	want := s.nft(table, 0)
	if there.KeyType.GetNFTMagic() != want.KeyType.GetNFTMagic() || !there.Interval {
		return nil, false, nil
	}
	elements, err := nl.GetSetElements(want)
	if err != nil {
		return nil, false, fmt.Errorf("list elements of set %s: %w", s.Name, err)
	}
	return prefixesOf(elements), true, nil
}

// replace writes the whole table anew.
func replace(nl *nftables.Conn, table *nftables.Table, t Table) error {
	nl.AddTable(table)
	nl.DelTable(table)
	nl.AddTable(table)
	for i, s := range t.Sets {
		set := s.nft(table, uint32(i)+1)
		if err := nl.AddSet(set, nil); err != nil {
			return fmt.Errorf("add set %s: %w", s.Name, err)
		}
		if err := change(nl, set, s.Prefixes, nil); err != nil {
			return err
		}
	}
	for _, c := range t.Chains {
		chain := nl.AddChain(c.Hook.chain(table, c.Name))
		for _, r := range c.Rules {
			comment, err := r.comment()
			if err != nil {
				return err
			}
			nl.AddRule(&nftables.Rule{
				Table: table, Chain: chain, Exprs: r.exprs(), UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
			})
		}
	}
	return nl.Flush()
}

// change adds the messages of one set's change to the transaction, removals first.
func change(nl *nftables.Conn, set *nftables.Set, add, remove []netip.Prefix) error {
	for part := range slices.Chunk(remove, chunk) {
		if err := nl.SetDeleteElements(set, elementsOf(part)); err != nil {
			return fmt.Errorf("remove from set %s: %w", set.Name, err)
		}
	}
	for part := range slices.Chunk(add, chunk) {
		if err := nl.SetAddElements(set, elementsOf(part)); err != nil {
			return fmt.Errorf("add to set %s: %w", set.Name, err)
		}
	}
	return nil
}

// difference returns what is in a and not in b.
func difference(a, b []netip.Prefix) []netip.Prefix {
	in := make(map[netip.Prefix]bool, len(b))
	for _, p := range b {
		in[p] = true
	}
	var d []netip.Prefix
	for _, p := range a {
		if !in[p] {
			d = append(d, p)
		}
	}
	return d
}
