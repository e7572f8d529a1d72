// SPDX-License-Identifier: Apache-2.0

// Command fairlead-cni is the CNI plugin: it hands what the container runtime asks for to the agent on this node. It keeps nothing, and
// does nothing itself but a DEL without an agent.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/cni"
)

// How long the verbs wait for the agent. STATUS holds a lock of containerd meanwhile; DEL goes on without an agent.
const (
	addTimeout    = 30 * time.Second
	restartWait   = 2 * time.Second // ADD, CHECK and GC wait so long for an agent that is just being restarted
	delTimeout    = 5 * time.Second
	statusTimeout = 400 * time.Millisecond
)

func main() {
	// skel would compare the pod's namespace with ours after the work, and print a second document; we compare before it.
	if err := os.Setenv("CNI_NETNS_OVERRIDE", "1"); err != nil {
		os.Exit(1)
	}
	funcs := skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}
	supported := version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
	if e := skel.PluginMainFuncsWithError(funcs, supported, "Fairlead CNI plugin"); e != nil {
		printError(e)
		os.Exit(1)
	}
}

// printError prints an error as the specification wants it, with a version, which skel leaves out.
func printError(e *types.Error) {
	// Nobody is left to tell when stdout is gone.
	_ = json.NewEncoder(os.Stdout).Encode(struct {
		Version string `json:"cniVersion"`
		*types.Error
	}{"1.0.0", e})
}

func add(args *skel.CmdArgs) error {
	c, err := cni.ParseConfig(args.StdinData, true)
	if err != nil {
		return specError(err)
	}
	if c.HasPrev {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is set: fairlead-cni makes the interface and must be the first plugin of the list", "")
	}
	ns, err := openNetns(args.Netns)
	if err != nil {
		return specError(err)
	}
	req := request(cni.Add, c, args)
	req.IPs, req.MAC, req.HostPorts, req.Annotations = c.IPs, c.MAC, c.HostPorts, c.Annotations
	got, err := ask(c, req, ns)
	if err != nil {
		return specError(err)
	}
	if got.HostPorts != len(c.HostPorts) {
		return specError(cni.Errorf(cni.CodeAgain, "runtimeConfig: portMappings: the agent is of an older release, without host ports"))
	}
	r, err := result(got, c, args)
	if err != nil {
		return specError(err)
	}
	return types.PrintResult(r, c.Version)
}

func check(args *skel.CmdArgs) error {
	c, err := cni.ParseConfig(args.StdinData, true)
	if err != nil {
		return specError(err)
	}
	if !c.HasPrev {
		return types.NewError(types.ErrInvalidNetworkConfig, "CHECK needs prevResult", "")
	}
	ns, err := openNetns(args.Netns)
	if err != nil {
		return specError(err)
	}
	req := request(cni.Check, c, args)
	req.HostPorts = c.HostPorts
	_, err = ask(c, req, ns)
	return specError(err)
}

func del(args *skel.CmdArgs) error {
	c, err := cni.ParseConfig(args.StdinData, false)
	if err != nil {
		return specError(err)
	}
	req := request(cni.Del, c, args)
	_, err = cni.Call(socket(c), req, -1, delTimeout)
	if errors.Is(err, cni.ErrAway) || errors.Is(err, cni.ErrSlow) {
		err = cni.DelWithoutAgent(c.RunDir, cni.Attachment{ContainerID: args.ContainerID, Ifname: args.IfName})
	}
	return specError(err)
}

func gc(args *skel.CmdArgs) error {
	c, err := cni.ParseConfig(args.StdinData, false)
	if err != nil {
		return specError(err)
	}
	if c.Valid == nil {
		return nil // the runtime did not say what is valid: everything may be
	}
	req := request(cni.GC, c, args)
	req.Valid = c.Valid
	_, err = ask(c, req, -1)
	return specError(err)
}

func status(args *skel.CmdArgs) error {
	c, err := cni.ParseConfig(args.StdinData, true)
	if err != nil {
		return specError(err)
	}
	_, err = cni.Call(socket(c), request(cni.Status, c, args), -1, statusTimeout)
	if errors.Is(err, cni.ErrAway) || errors.Is(err, cni.ErrSlow) {
		if cni.WasAlive(c.RunDir) {
			return nil // it is being restarted, and ADD waits for it: no reason to call the node NotReady
		}
		return specError(cni.Errorf(cni.CodeUnavailable, "%v", err))
	}
	return specError(err)
}

// ask sends a request, again while the agent is away, for a moment.
func ask(c *cni.Config, req cni.Request, netns int) (*cni.Result, error) {
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		r, err := cni.Call(socket(c), req, netns, addTimeout)
		switch {
		case errors.Is(err, cni.ErrAway) && time.Since(began) < restartWait:
		case errors.Is(err, cni.ErrAway), errors.Is(err, cni.ErrSlow):
			return nil, cni.Errorf(cni.CodeAgain, "%v", err)
		default:
			return r, err
		}
	}
}

func socket(c *cni.Config) string { return filepath.Join(c.RunDir, cni.SocketName) }

func request(verb cni.Verb, c *cni.Config, args *skel.CmdArgs) cni.Request {
	req := cni.Request{
		Verb:        verb,
		Network:     c.Name,
		ContainerID: args.ContainerID,
		Netns:       args.Netns,
		Ifname:      args.IfName,
		Pod:         cni.ParseArgs(args.Args),
	}
	for _, k := range []string{"TRACEPARENT", "TRACESTATE", "BAGGAGE"} {
		if v := os.Getenv(k); v != "" {
			if req.Trace == nil {
				req.Trace = map[string]string{}
			}
			req.Trace[k] = v
		}
	}
	return req
}

// openNetns opens the pod's namespace, and refuses what is none and what is the one that we are in.
func openNetns(path string) (int, error) {
	wrong := func(why any) (int, error) {
		return -1, cni.Errorf(cni.CodeEnvironment, "CNI_NETNS %s: %v", path, why)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return wrong(err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return wrong(err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return wrong("not a network namespace")
	}
	var its, own unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &its), unix.Stat("/proc/self/ns/net", &own)); err != nil {
		return wrong(err)
	}
	if its.Ino == own.Ino {
		return wrong("this is the node's own network namespace")
	}
	return fd, nil
}

// result puts the agent's answer into the form of the specification: the host's side of the link, then the pod's, and every address and
// route on the latter, since runtimes look addresses up by the interface that they belong to.
func result(got *cni.Result, c *cni.Config, args *skel.CmdArgs) (*types100.Result, error) {
	if got == nil {
		return nil, cni.Errorf(cni.CodeDecode, "answer of the agent has no result")
	}
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: got.HostLink, Mac: got.HostMAC, Mtu: got.MTU},
			{Name: args.IfName, Mac: got.PodMAC, Mtu: got.MTU, Sandbox: args.Netns},
		},
	}
	pod := 1
	for _, a := range got.Addrs {
		bits := a.Addr.BitLen()
		r.IPs = append(r.IPs, &types100.IPConfig{
			Interface: &pod,
			Address:   net.IPNet{IP: a.Addr.AsSlice(), Mask: net.CIDRMask(bits, bits)},
			Gateway:   a.Gateway.AsSlice(),
		})
		r.Routes = append(r.Routes, &types.Route{
			Dst: net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)},
			GW:  a.Gateway.AsSlice(),
		})
	}
	if len(c.DNS) > 0 {
		if err := json.Unmarshal(c.DNS, &r.DNS); err != nil {
			return nil, cni.Errorf(cni.CodeDecode, "network configuration: dns: %v", err)
		}
	}
	return r, nil
}

// specError gives an error its code; nil stays nil.
func specError(err error) error {
	if err == nil {
		return nil
	}
	e := cni.AsError(err)
	return types.NewError(uint(e.Code), cni.Harmless(e.Msg), fmt.Sprintf("fairlead %s", cni.API()))
}
