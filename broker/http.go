package broker

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// httpServer answers /healthz, /readyz, /metrics and /v1/endpoints.
type httpServer struct {
	ln  net.Listener
	srv *http.Server
	end chan struct{}
	on  bool
}

func newHTTP(s *Server, address string) (*httpServer, error) {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("http.address: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.ready(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ready")
	})
	mux.HandleFunc("GET /v1/endpoints", s.endpoints)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.reg, promhttp.HandlerOpts{}))
	return &httpServer{
		ln: ln, end: make(chan struct{}),
		srv: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second},
	}, nil
}

func (h *httpServer) address() string { return h.ln.Addr().String() }

func (h *httpServer) start() {
	h.on = true
	go func() {
		defer close(h.end)
		_ = h.srv.Serve(h.ln)
	}()
}

func (h *httpServer) close(ctx context.Context) error {
	if !h.on {
		return h.ln.Close()
	}
	err := h.srv.Shutdown(ctx)
	if err != nil {
		_ = h.srv.Close()
	}
	<-h.end
	return err
}
