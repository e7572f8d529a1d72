// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/fairlead/fairlead/pkg/cluster"
)

const (
	streamTime   = 5 * time.Minute  // a stream lives one to two times as long, so that servers get their load spread again
	listTime     = time.Minute      // for one page
	silence      = 30 * time.Second // in the initial part of a stream nothing is further apart, or the server does not know WatchList
	shortStream  = time.Second      // an empty stream that ends sooner is an error
	pageSize     = 500
	firstBackoff = 200 * time.Millisecond
	lastBackoff  = 30 * time.Second
)

var (
	errNoWatchList = errors.New("server does not stream lists")
	errShortStream = errors.New("stream ended at once")
	errOlderView   = errors.New("server has an older view than this node had")
)

// watcher keeps the values of one kind equal to what the API server has. One goroutine runs it.
type watcher struct {
	resource
	client   *client
	out      *queue
	versions *versions
	report   *reporter
	log      *slog.Logger

	intern  *cluster.Interner
	known   map[cluster.Key]any // what the consumer was told and not untold
	version string              // resourceVersion up to which known is right; empty: list first
}

// run lists and watches until the context ends.
func (w *watcher) run(ctx context.Context) {
	delay := firstBackoff
	for ctx.Err() == nil {
		start := time.Now()
		err := w.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil || time.Since(start) > lastBackoff {
			delay = firstBackoff
		}
		if err == nil {
			continue
		}
		w.report.stream(err)
		if !isStatus(err) && !errors.Is(err, errOlderView) || apierrors.IsInternalError(err) || apierrors.IsServiceUnavailable(err) {
			w.client.dialer.blame()
			w.client.http.CloseIdleConnections()
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay/2 + rand.N(delay)):
		}
		delay = min(2*delay, lastBackoff)
	}
}

// session makes one list, when there is none to go on from, and follows one stream to its end. A nil error means: go on at once.
func (w *watcher) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var stream watch.Interface
	var err error
	if w.version == "" {
		stream, err = w.streamList(ctx)
		if errors.Is(err, errNoWatchList) {
			w.log.Debug("list in pages", "kind", w.kind, "error", err)
			err = w.pageList(ctx)
		}
		if err != nil {
			return err
		}
	}
	if stream == nil {
		stream, err = w.open(ctx, metav1.ListOptions{ResourceVersion: w.version})
		if err != nil {
			return w.expired(err)
		}
	}
	defer stream.Stop()
	w.report.streamWorks()
	return w.expired(w.follow(ctx, stream))
}

// expired makes the next session list again when the server has forgotten our version.
func (w *watcher) expired(err error) error {
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		w.version = ""
		return nil
	}
	return err
}

// open starts a stream.
func (w *watcher) open(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	seconds := int64((streamTime + rand.N(streamTime)).Seconds())
	o.Watch, o.AllowWatchBookmarks, o.TimeoutSeconds = true, true, &seconds
	o.LabelSelector, o.FieldSelector = w.labels, w.fields
	stream, err := w.group.Get().Resource(w.name).VersionedParams(&o, w.client.params).Watch(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", w.name, err)
	}
	return stream, nil
}

// streamList reads the complete list as the first part of a stream (KEP-3157) and returns the stream after it. No resourceVersion is asked for,
// which means: as new as the server's store, never an old cache.
func (w *watcher) streamList(ctx context.Context) (watch.Interface, error) {
	initial := true
	stream, err := w.open(ctx, metav1.ListOptions{SendInitialEvents: &initial, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan})
	if err != nil {
		return nil, noWatchList(err)
	}
	l := w.newList()
	quiet := time.NewTimer(silence)
	defer quiet.Stop()
	for {
		select {
		case <-quiet.C:
			stream.Stop()
			return nil, fmt.Errorf("%w: nothing in %s", errNoWatchList, silence)
		case e, ok := <-stream.ResultChan():
			if !ok {
				return nil, fmt.Errorf("list %s: stream ended early", w.name)
			}
			quiet.Reset(silence)
			o, err := accessor(e)
			if err != nil {
				stream.Stop()
				return nil, noWatchList(fmt.Errorf("list %s: %w", w.name, err))
			}
			switch e.Type {
			case watch.Added, watch.Modified:
				l.add(e.Object, o)
			case watch.Deleted:
				l.remove(keyOf(o))
			case watch.Bookmark:
				if o.GetAnnotations()[metav1.InitialEventsAnnotationKey] != "true" {
					continue
				}
				if err := w.replace(l, o.GetResourceVersion()); err != nil {
					stream.Stop()
					return nil, err
				}
				return stream, nil
			}
		}
	}
}

// noWatchList marks errors after which pages are worth a try: servers refuse a streamed list in several ways, and one on an etcd before 3.4.31 or
// 3.5.13, which cannot say how far it is, does so in the middle of the stream. Where we may not read at all pages are no better.
func noWatchList(err error) error {
	if !isStatus(err) || apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsNotFound(err) || apierrors.IsTooManyRequests(err) {
		return err
	}
	return fmt.Errorf("%w: %w", errNoWatchList, err)
}

// pageList reads the complete list by a consistent read, in pages of which only our records stay.
func (w *watcher) pageList(ctx context.Context) error {
	l := w.newList()
	o := metav1.ListOptions{LabelSelector: w.labels, FieldSelector: w.fields, Limit: pageSize}
	for {
		page := w.list()
		err := w.group.Get().Resource(w.name).VersionedParams(&o, w.client.params).Timeout(listTime).Do(ctx).Into(page)
		if apierrors.IsResourceExpired(err) && o.Continue != "" {
			// The list took longer than the server keeps old versions: start again, all at once.
			o.Continue, o.Limit, l = "", 0, w.newList()
			continue
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", w.name, err)
		}
		err = meta.EachListItem(page, func(item runtime.Object) error {
			a, err := meta.Accessor(item)
			if err == nil {
				l.add(item, a)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("list %s: %w", w.name, err)
		}
		m, err := meta.ListAccessor(page)
		if err != nil {
			return fmt.Errorf("list %s: %w", w.name, err)
		}
		if o.Continue = m.GetContinue(); o.Continue == "" {
			return w.replace(l, m.GetResourceVersion())
		}
	}
}

// follow applies a stream's events until it ends.
func (w *watcher) follow(ctx context.Context, stream watch.Interface) error {
	start, events := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-stream.ResultChan():
			if !ok {
				if events == 0 && time.Since(start) < shortStream {
					return fmt.Errorf("watch %s: %w", w.name, errShortStream)
				}
				return nil
			}
			events++
			o, err := accessor(e)
			if err != nil {
				return fmt.Errorf("watch %s: %w", w.name, err)
			}
			switch e.Type {
			case watch.Added, watch.Modified:
				w.put(keyOf(o), w.value(e.Object, o))
			case watch.Deleted:
				w.report.fieldsGood(keyOf(o))
				w.put(keyOf(o), nil)
			}
			w.version = o.GetResourceVersion()
			w.versions.raise(w.kind, w.version)
		}
	}
}

// put tells the consumer that an object now has this value, if that is news; nil: it is gone.
func (w *watcher) put(key cluster.Key, value any) {
	old, ok := w.known[key]
	switch {
	case value == nil && !ok:
		return
	case value == nil:
		delete(w.known, key)
	case ok && reflect.DeepEqual(old, value): // heartbeats, status fields and labels that we do not read
		return
	default:
		w.known[key] = value
	}
	w.out.put([]cluster.Change{{Kind: w.kind, Key: key, Value: value}})
}

// value converts an object; what is wrong with it becomes a condition.
func (w *watcher) value(o runtime.Object, a metav1.Object) any {
	v, err := w.convert(o, w.intern)
	if err != nil {
		w.report.fieldsBad(keyOf(a), err)
	} else {
		w.report.fieldsGood(keyOf(a))
	}
	return v
}

// accessor returns the name and version of an event's object, or the error that the event is.
func accessor(e watch.Event) (metav1.Object, error) {
	if e.Type == watch.Error {
		return nil, apierrors.FromObject(e.Object)
	}
	return meta.Accessor(e.Object)
}

// isStatus says that an API server answered.
func isStatus(err error) bool {
	var s apierrors.APIStatus
	return errors.As(err, &s)
}
