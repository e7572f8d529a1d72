// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/pkg/cni"
)

func TestAddConnectsThePod(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	a := n.pod()
	r := n.mustAdd(a)

	if len(r.Interfaces) != 2 || r.Interfaces[0].Name != a.link() || r.Interfaces[0].Sandbox != "" ||
		r.Interfaces[1].Name != "eth0" || r.Interfaces[1].Sandbox != a.NetNS || r.Interfaces[1].Mtu != 1450 {
		t.Errorf("interfaces: %v", r.Interfaces)
	}
	var ips []string
	for _, ip := range r.IPs {
		if ip.Interface == nil || *ip.Interface != 1 {
			t.Errorf("address %v is not on the pod's interface", ip)
		}
		ips = append(ips, ip.Address.String()+" via "+ip.Gateway.String())
	}
	if d := cmp.Diff([]string{"10.1.0.2/32 via 169.254.1.1", "fd00:1::2/128 via fe80::1"}, ips); d != "" {
		t.Error(d)
	}
	mac := podMAC(a.ContainerID, "eth0")
	if got := r.Interfaces[1].Mac; got != net.HardwareAddr(mac[:]).String() {
		t.Errorf("MAC %s, want %x", got, mac)
	}
	// No address waits for duplicate detection, and the gateway needs no question.
	out := sh(t, a.ns, "ip -6 addr show dev eth0; ip neigh show dev eth0; ip route; ip -6 route show default; cat /proc/sys/net/ipv6/conf/eth0/accept_ra")
	for _, w := range []string{"fd00:1::2/128", "169.254.1.1 lladdr 02:00:00:00:00:fe PERMANENT", "fe80::1 lladdr 02:00:00:00:00:fe", "default via 169.254.1.1", "default via fe80::1"} {
		if !strings.Contains(out, w) {
			t.Errorf("pod side lacks %q:\n%s", w, out)
		}
	}
	if strings.Contains(out, "tentative") || !strings.HasSuffix(out, "0\n") {
		t.Errorf("pod side waits, or believes advertisements:\n%s", out)
	}
	// The node reaches the pod at once, over both families.
	for _, ip := range r.IPs {
		talk(t, n.ns, a.ns, netip.MustParseAddr(ip.Address.IP.String()))
	}
	if err := n.check(a); err != nil {
		t.Errorf("CHECK right after ADD: %v", err)
	}
	if got := n.table.PodAddresses("default", a.ContainerID); len(got) != 2 || got[0].String() != "10.1.0.2" {
		t.Errorf("addresses of the pod: %v", got)
	}
	ns, err := n.table.OpenNamespace(n.table.List()[0].Cookie)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := inodeOf(ns); got != n.table.List()[0].Inode {
		t.Errorf("namespace %d, want %d", got, n.table.List()[0].Inode)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	n.mustDel(a)
	eventually(t, n.clean)
}

// talk sends a datagram from one namespace to an address in another and waits for its echo.
func talk(t *testing.T, from, to *os.File, addr netip.Addr) {
	t.Helper()
	var server net.PacketConn
	in(t, to, func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	defer server.Close()
	go func() {
		buf := make([]byte, 64)
		for {
			k, peer, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buf[:k], peer)
		}
	}()
	var client net.Conn
	in(t, from, func() (err error) {
		client, err = net.Dial("udp", server.LocalAddr().String())
		return err
	})
	defer client.Close()
	if err := client.SetDeadline(time.Now().Add(patient(3 * time.Second))); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if k, err := client.Read(buf); err != nil || string(buf[:k]) != "hello" {
		t.Errorf("answer of %s: %q, %v", addr, buf[:k], err)
	}
}

func TestEveryVersionOfTheSpecification(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	for _, v := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		n.configure(func(dir string) ([]byte, error) {
			return fmt.Appendf(nil, `{"cniVersion":%q,"name":"fairlead","plugins":[{"type":"fairlead-cni","runDir":%q}]}`, v, dir), nil
		})
		p := n.pod()
		conf := fmt.Sprintf(`{"cniVersion":%q,"name":"fairlead","type":"fairlead-cni","runDir":%q}`, v, n.cfg.RunDir)
		out, err := n.raw("ADD", conf, "CNI_CONTAINERID="+p.ContainerID, "CNI_IFNAME=eth0", "CNI_NETNS="+p.NetNS)
		if err != nil {
			t.Fatalf("%s: %v: %s", v, err, out)
		}
		var r struct{ CNIVersion string }
		if err := json.Unmarshal([]byte(out), &r); err != nil || r.CNIVersion != v {
			t.Errorf("%s: result %s, %v", v, out, err)
		}
		n.mustAdd(p) // the same result again, which libcni keeps
		if v >= "0.4.0" {
			if err := n.check(p); err != nil {
				t.Errorf("%s: CHECK: %v", v, err)
			}
		}
		n.mustDel(p)
	}
	for _, v := range []string{"0.2.0", "9.0.0", ""} {
		out, err := n.raw("ADD", fmt.Sprintf(`{"cniVersion":%q,"name":"fairlead","type":"fairlead-cni"}`, v), "CNI_CONTAINERID=x", "CNI_IFNAME=eth0", "CNI_NETNS=/proc/1/ns/net")
		if err == nil || !strings.Contains(out, `"code":1`) || !strings.Contains(out, `"cniVersion"`) {
			t.Errorf("version %q: %s, %v", v, out, err)
		}
	}
}

func TestAddTwiceHasTheSameResult(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := n.pod()
	first := n.mustAdd(p)
	if d := cmp.Diff(first, n.mustAdd(p)); d != "" {
		t.Error(d)
	}
	other := n.pod()
	other.ContainerID = p.ContainerID
	_, err := n.add(other)
	want(t, err, 100, "another network namespace")
	sh(t, p.ns, "ip addr flush dev eth0")
	_, err = n.add(p)
	want(t, err, 100, "broken")
	n.mustDel(p)
	n.mustAdd(p) // in the same namespace, where the link of before may still be
	n.mustDel(p)
	q := n.podIn(p.ns) // and for another container
	n.mustAdd(q)
	n.mustDel(q)
	eventually(t, n.clean)
}

func TestDelIsForgiving(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := n.pod()
	n.mustDel(p) // never added
	n.mustAdd(p)
	for range 3 {
		n.mustDel(p)
	}
	for _, ns := range []string{"", "/run/netns/gone", "/etc/passwd", "/proc/self/ns/net"} {
		q := n.pod()
		n.mustAdd(q)
		q.NetNS = ns
		if err := n.del(q); err != nil {
			t.Errorf("DEL with namespace %q: %v", ns, err)
		}
	}
	eventually(t, n.clean)
}

func TestDelNeedsNoConfigurationThatIsRight(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := n.pod()
	n.mustAdd(p)
	n.configure(func(dir string) ([]byte, error) {
		return fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"fairlead","plugins":[{"type":"fairlead-cni","runDir":%q,"ipam":{"type":"x"},"colour":1}]}`, dir), nil
	})
	n.mustDel(p)
	eventually(t, n.clean)
}

func TestCheckNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	for name, c := range map[string]struct {
		pod, node, words string
		f                func(*pod)
	}{
		"address":     {pod: "ip addr del 10.1.0.%d/32 dev eth0", words: "lacks address 10.1.0."},
		"address6":    {pod: "ip addr del fd00:1::%x/128 dev eth0", words: "lacks address fd00:1::"},
		"route":       {pod: "ip route del default", words: "lacks route to 0.0.0.0/0"},
		"neighbour":   {pod: "ip neigh del 169.254.1.1 dev eth0", words: "neighbour 169.254.1.1"},
		"mac":         {pod: "ip link set eth0 address 02:11:22:33:44:55", words: "MAC"},
		"mtu":         {pod: "ip link set eth0 mtu 9000", words: "MTU"},
		"down":        {pod: "ip link set eth0 down", words: "is down"},
		"link":        {pod: "ip link del eth0", words: "is absent"},
		"host route":  {node: "ip route del 10.1.0.%d", words: "lacks route to 10.1.0."},
		"host filter": {node: "tc filter del dev LINK ingress", words: "from_pod"},
		"clsact":      {node: "tc qdisc del dev LINK clsact", words: "from_pod"},
		"map": {words: "programs' table", f: func(p *pod) {
			e, _ := n.table.get(p.link())
			if err := n.objects.Endpoints().Delete(e.ID); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := n.pod()
			r := n.mustAdd(p)
			last := int(r.IPs[0].Address.IP.To4()[3])
			if c.pod != "" {
				sh(t, p.ns, fill(c.pod, last, p))
			}
			if c.node != "" {
				sh(t, n.ns, fill(c.node, last, p))
			}
			if c.f != nil {
				c.f(p)
			}
			want(t, n.check(p), 101, c.words)
			n.mustDel(p)
		})
	}
	p := n.pod()
	n.mustAdd(p)
	// What others add in a chain is no error.
	sh(t, p.ns, "ip addr add 198.51.100.1/32 dev eth0; ip route add 203.0.113.0/24 dev eth0; ip link set eth0 mtu 1400")
	if err := n.check(p); err != nil {
		t.Error(err)
	}
	n.stop()
	want(t, n.check(p), 11, "agent is away")
	n.start()
}

func fill(command string, last int, p *pod) string {
	if strings.Contains(command, "%") {
		command = fmt.Sprintf(command, last)
	}
	return strings.ReplaceAll(command, "LINK", p.link())
}

func TestWrongInputIsNamed(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := n.pod()
	n.mustAdd(p)
	conf := func(more string) string {
		return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"fairlead","type":"fairlead-cni","runDir":%q%s}`, n.cfg.RunDir, more)
	}
	env := func(ns string) []string {
		return []string{"CNI_CONTAINERID=wrong", "CNI_IFNAME=eth0", "CNI_NETNS=" + ns}
	}
	other := path(newNamespace(t))
	for name, c := range map[string]struct {
		stdin string
		env   []string
		code  int
		words []string
	}{
		"hostPort": {conf(`,"runtimeConfig":{"portMappings":[{"hostPort":80800,"containerPort":80,"protocol":"tcp"}]}`), env(other), 7, []string{"portMappings[0]", "hostPort 80800"}},
		"two targets": {conf(`,"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80},{"hostPort":8080,"containerPort":81,"hostIP":"0.0.0.0"}]}`), env(other), 7,
			[]string{"0.0.0.0:8080/tcp", "80 and 81"}},
		"bandwidth":     {conf(`,"runtimeConfig":{"bandwidth":{"ingressRate":1000,"ingressBurst":1}}`), env(other), 2, []string{"bandwidth", "1000"}},
		"unknown key":   {conf(`,"rundir":"/x"`), env(other), 2, []string{"rundir", "/x", "runDir"}},
		"ipam":          {conf(`,"ipam":{"type":"host-local"}`), env(other), 2, []string{"ipam", "host-local"}},
		"relative":      {`{"cniVersion":"1.0.0","name":"fairlead","runDir":"run"}`, env(other), 7, []string{"runDir", "run"}},
		"wrong type":    {`{"cniVersion":"1.0.0","name":"fairlead","runDir":7}`, env(other), 6, []string{"runDir", "7"}},
		"prevResult":    {conf(`,"prevResult":{"cniVersion":"1.0.0","ips":[]}`), env(other), 7, []string{"prevResult"}},
		"ips outside":   {conf(`,"runtimeConfig":{"ips":["10.2.0.9/24"]}`), env(other), 7, []string{"10.2.0.9", "10.1.0.0/24"}},
		"ips reserved":  {conf(`,"runtimeConfig":{"ips":["10.1.0.1"]}`), env(other), 7, []string{"10.1.0.1", "reserved"}},
		"ips broadcast": {conf(`,"runtimeConfig":{"ips":["10.1.0.255"]}`), env(other), 7, []string{"10.1.0.255", "reserved"}},
		"ips taken":     {conf(`,"runtimeConfig":{"ips":["10.1.0.2"]}`), env(other), 100, []string{"10.1.0.2", "in use"}},
		"ips twice":     {conf(`,"runtimeConfig":{"ips":["10.1.0.8","10.1.0.9"]}`), env(other), 7, []string{"10.1.0.9", "second"}},
		"ips no ip":     {conf(`,"runtimeConfig":{"ips":["somewhere"]}`), env(other), 7, []string{"somewhere"}},
		"mac":           {conf(`,"runtimeConfig":{"mac":"01:00:5e:00:00:01"}`), env(other), 7, []string{"01:00:5e:00:00:01"}},
		"annotation":    {conf(`,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"fairlead.io/socket-lb":"no"}}`), env(other), 7, []string{"socket-lb", "no"}},
		"own namespace": {conf(""), env("/proc/self/ns/net"), 4, []string{"own network namespace"}},
		"no namespace":  {conf(""), env("/etc/passwd"), 4, []string{"/etc/passwd"}},
		"absent":        {conf(""), env("/run/netns/absent"), 4, []string{"/run/netns/absent"}},
		"taken name":    {conf(""), env(p.NetNS), 100, []string{"eth0"}},
		"not JSON":      {"{", env(other), 6, nil},
		"no name":       {`{"cniVersion":"1.0.0"}`, env(other), 7, nil},
		"no container":  {conf(""), []string{"CNI_IFNAME=eth0", "CNI_NETNS=" + other}, 4, []string{"CNI_CONTAINERID"}},
		"long name":     {conf(""), []string{"CNI_CONTAINERID=x", "CNI_IFNAME=abcdefghijklmnop", "CNI_NETNS=" + other}, 4, nil},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := n.raw("ADD", c.stdin, c.env...)
			var e struct {
				CNIVersion, Msg string
				Code            int
			}
			d := json.NewDecoder(strings.NewReader(out))
			if jerr := d.Decode(&e); err == nil || jerr != nil || d.More() || e.Code != c.code || e.CNIVersion == "" {
				t.Fatalf("%v, %v, want code %d: %s", err, jerr, c.code, out)
			}
			for _, w := range c.words {
				if !strings.Contains(e.Msg, w) {
					t.Errorf("message %q lacks %q", e.Msg, w)
				}
			}
		})
	}
	if v := n.table.Status(); v.Endpoints != 1 || v.Pools[0].Used != 1 || v.Pools[1].Used != 1 {
		t.Errorf("refused requests left something: %+v", v)
	}
	n.mustDel(p)
	eventually(t, n.clean)
}

func TestCapabilitiesThatAreHonoured(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := n.pod()
	p.CapabilityArgs = map[string]any{
		"ips":                               []string{"10.1.0.77/24", "fd00:1::77"},
		"mac":                               "02:aa:bb:cc:dd:ee",
		"portMappings":                      []any{},
		"io.kubernetes.cri.pod-annotations": map[string]string{"fairlead.io/socket-lb": "off", "other": "x"},
	}
	r := n.mustAdd(p)
	if got := fmt.Sprintf("%s %s %s", r.IPs[0].Address.IP, r.IPs[1].Address.IP, r.Interfaces[1].Mac); got != "10.1.0.77 fd00:1::77 02:aa:bb:cc:dd:ee" {
		t.Error(got)
	}
	e := n.table.List()[0]
	if b, ok := n.objects.Endpoints().Get(e.ID); !ok || b.Flags == 0 {
		t.Errorf("socket path is not off: %+v", b)
	}
	if err := n.check(p); err != nil {
		t.Error(err)
	}
	n.mustDel(p)
	eventually(t, n.clean)
}

func TestStatus(t *testing.T) {
	t.Parallel()
	notReady := ""
	n := newNode(t, func(c *Config) {
		c.Pools = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/29")}
		c.Ready = func() error {
			if notReady != "" {
				return fmt.Errorf("%s", notReady)
			}
			return nil
		}
	})
	if err := n.status(); err != nil {
		t.Error(err)
	}
	for range 5 {
		n.mustAdd(n.pod())
	}
	want(t, n.status(), 50, "10.1.0.0/29", "full")
	_, err := n.add(n.pod())
	want(t, err, 11, "10.1.0.0/29", "full")
	notReady = "Services are not listed yet"
	want(t, n.status(), 51, notReady)
	_, err = n.add(n.pod())
	want(t, err, 11, notReady)
	notReady = ""
	n.stop()
	if err := n.status(); err != nil {
		t.Errorf("an agent that was here a moment ago: %v", err)
	}
	if err := cni.WriteAlive(n.cfg.RunDir, sinceBoot()-31*time.Second); err != nil {
		t.Fatal(err)
	}
	want(t, n.status(), 50, "agent is away")
	// One that takes the request and never answers.
	l, err := cni.Listen(n.cfg.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	want(t, n.status(), 50, "does not answer")
	if took := time.Since(began); took > patient(time.Second) {
		t.Errorf("STATUS of a hung agent took %s", took)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	n.start()
}

func TestGC(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	gc := func(field string) {
		t.Helper()
		out, err := n.raw("GC", fmt.Sprintf(`{"cniVersion":"1.1.0","name":"fairlead","type":"fairlead-cni","runDir":%q%s}`, n.cfg.RunDir, field))
		if err != nil {
			t.Fatalf("GC: %v: %s", err, out)
		}
	}
	alive, lost, young := n.pod(), n.pod(), n.pod()
	for _, p := range []*pod{alive, lost, young} {
		n.mustAdd(p)
	}
	sh(t, lost.ns, "ip link del eth0")
	sh(t, young.ns, "ip link del eth0")
	n.table.mu.Lock()
	for _, p := range []*pod{alive, lost} {
		n.table.endpoints[p.link()].Created -= 2 * youth
	}
	n.table.mu.Unlock()
	left := func(want ...*pod) {
		t.Helper()
		var have, names []string
		for _, e := range n.table.List() {
			have = append(have, e.ContainerID)
		}
		for _, p := range want {
			names = append(names, p.ContainerID)
		}
		if d := cmp.Diff(names, have); d != "" {
			t.Error(d)
		}
	}
	gc("")
	gc(`,"cni.dev/valid-attachments":null`)
	gc(fmt.Sprintf(`,"cni.dev/valid-attachments":[{"containerID":%q,"ifname":"eth0"}]`, lost.ContainerID))
	left(alive, lost, young)
	gc(fmt.Sprintf(`,"cni.dev/attachments":[{"containerID":%q,"ifname":"eth0"}]`, alive.ContainerID))
	left(alive, young)
	gc(`,"cni.dev/valid-attachments":[]`)
	left(alive, young)

	// Without a runtime that asks: what is missing twice goes, the young stay.
	n.table.mu.Lock()
	n.table.endpoints[young.link()].Created -= 2 * youth
	n.table.mu.Unlock()
	missing, err := n.table.sweep(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	left(alive, young)
	if _, err := n.table.sweep(t.Context(), missing); err != nil {
		t.Fatal(err)
	}
	left(alive)
	n.mustDel(alive)
	eventually(t, n.clean)
}
