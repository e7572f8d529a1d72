// SPDX-License-Identifier: Apache-2.0

// Package cni is what the CNI binary and the agent say to each other, and what both need to know of the CNI specification (1.1.0): the
// network configuration, the result, tombstones of a DEL without an agent, and the installation of binary and configuration.
//
// One connection carries one request: the client sends a JSON document, with the pod's network namespace as a file descriptor
// (SCM_RIGHTS) beside its first byte, and closes its writing side; the server answers with one JSON document.
package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Revision is the protocol's revision. Both sides accept one less and one more: a revision may only add what the other side can do
// without.
const Revision = 1

const apiPrefix = "cni/"

// API returns the name of the revision that this side speaks.
func API() string { return apiPrefix + strconv.Itoa(Revision) }

// checkAPI says whether the other side's revision is close enough.
func checkAPI(name string) error {
	n, err := strconv.Atoi(strings.TrimPrefix(name, apiPrefix))
	if err != nil || !strings.HasPrefix(name, apiPrefix) || n < Revision-1 || n > Revision+1 {
		return fmt.Errorf("protocol %q is not %s%d to %s%d: install the CNI binary of this release", name, apiPrefix, max(Revision-1, 1), apiPrefix, Revision+1)
	}
	return nil
}

// Verb is a CNI operation.
type Verb string

// The verbs that reach the agent; VERSION is answered by the binary alone.
const (
	Add    Verb = "ADD"
	Del    Verb = "DEL"
	Check  Verb = "CHECK"
	GC     Verb = "GC"
	Status Verb = "STATUS"
)

// Request is one call of a runtime.
type Request struct {
	API         string            `json:"api"`
	Verb        Verb              `json:"verb"`
	Network     string            `json:"network,omitempty"` // name of the network configuration
	ContainerID string            `json:"containerID,omitempty"`
	Netns       string            `json:"netns,omitempty"` // path as the runtime gave it; the descriptor counts
	Ifname      string            `json:"ifname,omitempty"`
	Pod         Pod               `json:"pod,omitzero"`
	IPs         []netip.Addr      `json:"ips,omitempty"`         // capability ips: at most one per family
	MAC         string            `json:"mac,omitempty"`         // capability mac
	HostPorts   []HostPort        `json:"hostPorts,omitempty"`   // capability portMappings: ADD and CHECK
	Annotations map[string]string `json:"annotations,omitempty"` // of the pod, fairlead.io/* only
	Valid       *[]Attachment     `json:"valid,omitempty"`       // GC: what the runtime still knows; nil: it did not say
	Trace       map[string]string `json:"trace,omitempty"`       // TRACEPARENT, TRACESTATE, BAGGAGE
}

// Pod is the Kubernetes pod that a container belongs to; empty outside Kubernetes.
type Pod struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

// Attachment is one interface of one container.
type Attachment struct {
	ContainerID string `json:"containerID"`
	Ifname      string `json:"ifname"`
}

// LinkName returns the name of the host side of an attachment's veth: "fl" and 12 hexadecimal digits, so that DEL and GC find it without
// any record.
func (a Attachment) LinkName() string {
	sum := sha256.Sum256([]byte(a.ContainerID + "/" + a.Ifname))
	return LinkPrefix + hex.EncodeToString(sum[:6])
}

// LinkPrefix begins the name of every host side.
const LinkPrefix = "fl"

// IsLinkName says whether a link name may be that of a host side.
func IsLinkName(name string) bool {
	if len(name) != len(LinkPrefix)+12 || !strings.HasPrefix(name, LinkPrefix) {
		return false
	}
	_, err := hex.DecodeString(name[len(LinkPrefix):])
	return err == nil
}

// String returns "containerID/ifname".
func (a Attachment) String() string { return a.ContainerID + "/" + a.Ifname }

// Result is what ADD made.
type Result struct {
	HostLink  string       `json:"hostLink"`
	HostMAC   string       `json:"hostMAC"`
	PodMAC    string       `json:"podMAC"`
	MTU       int          `json:"mtu"` // bytes
	Addrs     []Assignment `json:"addrs"`
	HostPorts int          `json:"hostPorts,omitempty"` // how many of the request's were seen: an agent without host ports says 0
}

// Assignment is an address of the pod and its gateway.
type Assignment struct {
	Addr    netip.Addr `json:"addr"`
	Gateway netip.Addr `json:"gateway"`
}

// Response answers a Request: an error, or the result of ADD, or neither.
type Response struct {
	API    string  `json:"api"`
	Error  *Error  `json:"error,omitempty"`
	Result *Result `json:"result,omitempty"`
}

// Code is an error code of the CNI specification, section 2.
type Code uint

// The codes in use; those from 100 on are ours.
const (
	CodeVersion     Code = 1  // incompatible CNI version
	CodeUnsupported Code = 2  // unsupported field in the network configuration: the message names key and value
	CodeUnknown     Code = 3  // container unknown: the runtime need not clean up
	CodeEnvironment Code = 4  // wrong CNI_ variable
	CodeIO          Code = 5  // input or output failed
	CodeDecode      Code = 6  // content could not be decoded
	CodeConfig      Code = 7  // wrong network configuration
	CodeAgain       Code = 11 // try again later
	CodeUnavailable Code = 50 // not available for ADD
	CodeDegraded    Code = 51 // not available, and existing containers may be degraded
	CodeTaken       Code = 100
	CodeBroken      Code = 101 // CHECK found a difference
	CodeInternal    Code = 102
)

// Error is an error with a CNI code.
type Error struct {
	Code Code   `json:"code"`
	Msg  string `json:"msg"`
}

func (e *Error) Error() string { return e.Msg }

// Errorf returns an Error.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// AsError returns err as an Error: CodeInternal when nobody gave it a code.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Code: e.Code, Msg: err.Error()}
	}
	return &Error{Code: CodeInternal, Msg: err.Error()}
}

// Harmless returns a message without the words that runtimes take for success of DEL (go-cni looks for "not found" and "no such file or
// directory"): with them an address would leak in silence.
func Harmless(msg string) string {
	return strings.NewReplacer("not found", "missing", "Not found", "Missing", "no such file or directory", "path is absent").Replace(msg)
}
