// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// serverName is in the certificate of every API server, whatever address it is reached by.
const serverName = "kubernetes.default.svc"

const protobuf = "application/vnd.kubernetes.protobuf"

// client reaches the API groups that are watched. It knows their types only: the generated clientset would bring every group's.
type client struct {
	dialer *dialer
	http   *http.Client
	groups map[schema.GroupVersion]*rest.RESTClient
	params runtime.ParameterCodec
}

// newClient reads the configuration; it does not connect.
func newClient(o Options) (*client, error) {
	cfg, err := loadConfig(o.Kubeconfig)
	if err != nil {
		return nil, err
	}
	d := &dialer{failed: map[string]time.Time{}}
	if len(o.APIServers) == 0 {
		address, err := hostPort(cfg.Host)
		if err != nil {
			return nil, fmt.Errorf("read API server address %q: %w", cfg.Host, err)
		}
		d.fixed = []string{address}
	} else {
		for _, a := range o.APIServers {
			if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
				return nil, fmt.Errorf("read --api-server %q: not HOST:PORT", a)
			}
		}
		d.fixed = o.APIServers
		if !strings.HasPrefix(cfg.Host, "http://") {
			cfg.Host = "https://" + serverName
			cfg.ServerName = ""
		}
		cfg.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil } // an address was named: go there
	}
	cfg.Dial = d.dial
	cfg.UserAgent = "fairleadd"
	cfg.ContentType = protobuf
	cfg.AcceptContentTypes = protobuf + ",application/json"
	cfg.QPS = -1 // a handful of requests in all, and waiting in the client would only delay a reconnect

	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register API types: %w", err)
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()

	c := &client{dialer: d, groups: map[schema.GroupVersion]*rest.RESTClient{}, params: runtime.NewParameterCodec(scheme)}
	if c.http, err = rest.HTTPClientFor(cfg); err != nil {
		return nil, fmt.Errorf("make API client: %w", err)
	}
	for _, gv := range []schema.GroupVersion{corev1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion} {
		group := rest.CopyConfig(cfg)
		group.GroupVersion, group.APIPath = &gv, "/apis"
		if gv.Group == "" {
			group.APIPath = "/api"
		}
		if c.groups[gv], err = rest.RESTClientForConfigAndClient(group, c.http); err != nil {
			return nil, fmt.Errorf("make API client for %s: %w", gv, err)
		}
	}
	return c, nil
}

// loadConfig reads a kubeconfig, or the credentials of the pod that we run in.
func loadConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		cfg, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("read the pod's own API credentials (outside of a cluster give --kubeconfig or --manifests): %w", err)
		}
		return cfg, nil
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", kubeconfig, err)
	}
	return cfg, nil
}

// hostPort returns where a client for this base URL (or HOST, or HOST:PORT) connects to.
func hostPort(host string) (string, error) {
	if !strings.Contains(host, "://") {
		host = "https://" + host
	}
	u, err := url.Parse(host)
	if err != nil {
		return "", err
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80"}[u.Scheme]
	}
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}
