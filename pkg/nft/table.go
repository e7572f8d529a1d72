// SPDX-License-Identifier: Apache-2.0

// Package nft keeps small static nftables tables of Fairlead's own. It is the only importer of google/nftables. It never reads or
// changes a table of another name.
package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Table is a table of family inet with everything in it.
type Table struct {
	Name   string
	Sets   []Set
	Chains []Chain
}

// Set is a named set of disjoint prefixes of one family.
type Set struct {
	Name     string
	IPv6     bool
	Prefixes []netip.Prefix
	Keep     bool // elements that are there already stay: somebody else tends them by Change
}

// Chain is a base chain with policy accept.
type Chain struct {
	Name  string
	Hook  Hook
	Rules []Rule
}

// Hook is where a chain runs.
type Hook uint8

// The hooks in use.
const (
	Postrouting Hook = iota // type nat, priority srcnat (100)
)

func (h Hook) chain(t *nftables.Table, name string) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return &nftables.Chain{
		Table: t, Name: name, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		Policy: &accept,
	}
}

// Rule is a list of conditions and what then happens. The comment is for people who read the ruleset.
type Rule struct {
	Comment string
	Parts   []Part
}

// Part is one condition or action of a rule.
type Part struct {
	exprs []expr.Any
}

// Offsets in the network header (RFC 791, section 3.1; RFC 8200, section 3).
const (
	source4, destination4 = 12, 16
	source6, destination6 = 8, 24
)

// SourceIn matches packets of the set's family whose source is in it.
func SourceIn(s Set) Part { return s.lookup(source4, source6, false) }

// DestinationNotIn matches packets of the set's family whose destination is not in it.
func DestinationNotIn(s Set) Part { return s.lookup(destination4, destination6, true) }

func (s Set) lookup(at4, at6 uint32, not bool) Part {
	family, offset, size := byte(unix.NFPROTO_IPV4), at4, uint32(4)
	if s.IPv6 {
		family, offset, size = unix.NFPROTO_IPV6, at6, 16
	}
	return Part{[]expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Lookup{SourceRegister: 1, SetName: s.Name, Invert: not},
	}}
}

// NotOut matches packets that leave by a device of another name; a trailing * stands for any rest.
func NotOut(name string) Part {
	data := make([]byte, unix.IFNAMSIZ)
	n := copy(data, name)
	if n > 0 && name[n-1] == '*' {
		data = data[:n-1] // compares only as many bytes
	}
	return Part{[]expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data},
	}}
}

// Masquerade counts the connection and gives it the address of the outgoing device, with a random port.
func Masquerade() Part {
	return Part{[]expr.Any{&expr.Counter{}, &expr.Masq{FullyRandom: true}}}
}

func (r Rule) exprs() []expr.Any {
	var all []expr.Any
	for _, p := range r.Parts {
		all = append(all, p.exprs...)
	}
	return all
}

// comment is what the kernel keeps with a rule: the people's comment and a fingerprint of the rule, by which Ensure knows its own rules
// without reading expressions back (the kernel returns them in another form).
func (r Rule) comment() (string, error) {
	sum := sha256.New()
	for _, e := range r.exprs() {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			return "", fmt.Errorf("encode rule %q: %w", r.Comment, err)
		}
		sum.Write(b)
	}
	return fmt.Sprintf("%s (%s)", r.Comment, hex.EncodeToString(sum.Sum(nil)[:4])), nil
}

func (s Set) nft(t *nftables.Table, id uint32) *nftables.Set {
	kind := nftables.TypeIPAddr
	if s.IPv6 {
		kind = nftables.TypeIP6Addr
	}
	return &nftables.Set{Table: t, ID: id, Name: s.Name, KeyType: kind, Interval: true, KeyByteOrder: binaryutil.BigEndian}
}

// commentOf reads a rule's comment.
func commentOf(r *nftables.Rule) string {
	s, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	return s
}
