// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// The addresses that the API server is told to publish; nothing listens there.
const advertised = "192.0.2.10"

const (
	adminToken = "admin-token" // everything
	agentToken = "agent-token" // user "agent": what the test grants
)

// apiServer is a real kube-apiserver with its etcd, on loopback.
type apiServer struct {
	t       *testing.T
	dir     string
	flags   []string // more of kube-apiserver's
	port    int
	etcd    string
	process *exec.Cmd
	http    *http.Client
}

// startAPIServer runs both until the test ends. Without a feature of its own the server streams lists; etcd must be able to.
func startAPIServer(t *testing.T, flags ...string) *apiServer {
	t.Helper()
	etcd := binary(t, "etcd", "FAIRLEAD_ETCD")
	s := &apiServer{t: t, dir: t.TempDir(), flags: flags, port: freePort(t)}
	client, peer := freePort(t), freePort(t)
	s.etcd = fmt.Sprintf("http://127.0.0.1:%d", client)
	s.start(etcd, "--name=test", "--data-dir="+filepath.Join(s.dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+s.etcd, "--advertise-client-urls="+s.etcd,
		fmt.Sprintf("--listen-peer-urls=http://127.0.0.1:%d", peer))
	s.write("tokens.csv", adminToken+",admin,admin,system:masters\n"+agentToken+",agent,agent\n")
	for _, args := range [][]string{
		{"genrsa", "-out", filepath.Join(s.dir, "sa.key"), "2048"},
		{"rsa", "-in", filepath.Join(s.dir, "sa.key"), "-pubout", "-out", filepath.Join(s.dir, "sa.pub")},
	} {
		if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
	s.http = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the test's own requests; the source verifies
	}}
	s.startServer()
	return s
}

// startServer runs the API server, again after stopServer.
func (s *apiServer) startServer() {
	s.t.Helper()
	s.process = s.start(binary(s.t, "kube-apiserver", "FAIRLEAD_KUBE_APISERVER"), append([]string{"--etcd-servers=" + s.etcd, "--cert-dir=" + filepath.Join(s.dir, "certs"),
		"--token-auth-file=" + filepath.Join(s.dir, "tokens.csv"), "--authorization-mode=RBAC", "--allow-privileged=true",
		"--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112", "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + filepath.Join(s.dir, "sa.pub"), "--service-account-signing-key-file=" + filepath.Join(s.dir, "sa.key"),
		"--bind-address=127.0.0.1", "--advertise-address=" + advertised, fmt.Sprintf("--secure-port=%d", s.port),
		"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition", "--profiling=false"}, s.flags...)...)
	deadline := time.Now().Add(90 * time.Second)
	for {
		err := s.request(http.MethodGet, "/readyz", nil)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(s.logFile(s.process.Path))
			s.t.Fatalf("wait for kube-apiserver: %v\n%s", err, log[max(0, len(log)-4000):])
		}
		time.Sleep(100 * time.Millisecond) // readyz has no event to wait for
	}
}

// stopServer kills the API server; etcd stays.
func (s *apiServer) stopServer() {
	_ = s.process.Process.Kill()
	_ = s.process.Wait()
	s.http.CloseIdleConnections()
}

// start runs a program that dies with the test, also when the test is killed.
func (s *apiServer) start(path string, args ...string) *exec.Cmd {
	s.t.Helper()
	log, err := os.OpenFile(s.logFile(path), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, end := make(chan error), make(chan struct{})
	go func() { // the death signal comes when the thread that started the program ends: keep it
		runtime.LockOSThread()
		started <- cmd.Start()
		<-end
	}()
	if err := <-started; err != nil {
		s.t.Fatalf("start %s: %v", path, err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // an error when stopServer was first
		close(end)
		_ = log.Close()
	})
	return cmd
}

func (s *apiServer) logFile(path string) string {
	return filepath.Join(s.dir, filepath.Base(path)+".log")
}

func (s *apiServer) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// kubeconfig writes one for a port and a token. The API server's own certificate is what it is verified by.
func (s *apiServer) kubeconfig(port int, token string) string {
	return s.write(fmt.Sprintf("kubeconfig-%d-%s", port, token), fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:%d", tls-server-name: kubernetes.default.svc, certificate-authority: "%s"}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, port, filepath.Join(s.dir, "certs", "apiserver.crt"), token))
}

// request sends YAML as the administrator.
func (s *apiServer) request(method, path string, body []byte) error {
	r, err := http.NewRequest(method, fmt.Sprintf("https://127.0.0.1:%d%s", s.port, path), bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+adminToken)
	r.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		r.Header.Set("Content-Type", "application/merge-patch+json")
	}
	answer, err := s.http.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, text)
	}
	return err
}

// do is request with YAML, and must succeed.
func (s *apiServer) do(method, path, body string) {
	s.t.Helper()
	data, err := yaml.YAMLToJSON([]byte(body))
	if err == nil {
		err = s.request(method, path, data)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *apiServer) create(path, body string) { s.t.Helper(); s.do(http.MethodPost, path, body) }
func (s *apiServer) patch(path, body string)  { s.t.Helper(); s.do(http.MethodPatch, path, body) }
func (s *apiServer) remove(path string) {
	s.t.Helper()
	s.do(http.MethodDelete, path, "{gracePeriodSeconds: 0}")
}

// binary finds a program: by its variable, or where `make test-deps` leaves the one that it builds.
func binary(t *testing.T, name, variable string) string {
	t.Helper()
	if path := os.Getenv(variable); path != "" {
		return path
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(home, ".cache", "fairlead-cluster", "bin", name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.Command("make", "test-deps")
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make test-deps (or set %s): %v\n%s", variable, err, out)
	}
	return path
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// forward is a TCP address in front of the API server that can be cut.
type forward struct {
	t      *testing.T
	port   int
	target string
	cancel context.CancelFunc
	done   chan struct{}
}

func newForward(t *testing.T, port int) *forward {
	t.Helper()
	f := &forward{t: t, port: freePort(t), target: fmt.Sprintf("127.0.0.1:%d", port)}
	f.open()
	t.Cleanup(f.cut)
	return f
}

func (f *forward) address() string { return fmt.Sprintf("127.0.0.1:%d", f.port) }

// open listens until cut.
func (f *forward) open() {
	f.t.Helper()
	l, err := net.Listen("tcp", f.address())
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel, f.done = cancel, make(chan struct{})
	context.AfterFunc(ctx, func() { _ = l.Close() })
	done := f.done
	go func() {
		defer close(done)
		for {
			in, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			out, err := net.Dial("tcp", f.target)
			if err != nil {
				_ = in.Close()
				continue
			}
			context.AfterFunc(ctx, func() { _ = in.Close(); _ = out.Close() })
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1])
					_ = in.Close()
					_ = out.Close()
				}()
			}
		}
	}()
}

// cut refuses new connections and ends all that there are.
func (f *forward) cut() {
	if f.cancel != nil {
		f.cancel()
		<-f.done
	}
}
